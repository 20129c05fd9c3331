// Package stats is what the client in a pod tells of its requests.
package stats

import "time"

// What is asked.
const (
	Service = "service" // a web service of the cluster, by its cluster IP
	API     = "api"     // the kubernetes Service, with the pod's own account
)

// Patience is how long a request may take, also on a busy machine.
const Patience = 8 * time.Second

// ByTarget are the results by what was asked.
type ByTarget map[string]Result

// Result is what became of the requests so far.
type Result struct {
	Requests int
	P50, P99 time.Duration // of those that succeeded
	Failures []Failure
}

// Failure is a request that was not answered with 200 OK.
type Failure struct {
	Began time.Time
	Took  time.Duration
	Error string
}

// Between gives the failures of requests that began in the given time.
func (r Result) Between(from, to time.Time) (found []Failure) {
	for _, f := range r.Failures {
		if !f.Began.Before(from) && f.Began.Before(to) {
			found = append(found, f)
		}
	}
	return found
}
