package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
)

// ping is the check that always holds while requests are answered.
var ping = Check{Name: "ping"}

func healthPath(path string) bool {
	which, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return which == "livez" || which == "readyz" || which == "healthz"
}

// health serves /livez, /readyz and /healthz, whole or for one check.
func (s *Server) health(w http.ResponseWriter, r *http.Request, path string) {
	which, name, single := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	checks := s.checks(which)
	excluded := r.URL.Query()["exclude"]
	if single {
		i := slices.IndexFunc(checks, func(c Check) bool { return c.Name == name })
		if i < 0 {
			notFound(w)
			return
		}
		checks, excluded = checks[i:i+1], nil
	}
	var report strings.Builder
	failed := false
	for _, check := range checks {
		switch {
		case slices.Contains(excluded, check.Name):
			fmt.Fprintf(&report, "[+]%s excluded: ok\n", check.Name)
		case s.probe(r, which, check):
			fmt.Fprintf(&report, "[+]%s ok\n", check.Name)
		default:
			fmt.Fprintf(&report, "[-]%s failed: reason withheld\n", check.Name)
			failed = true
		}
	}
	if unknown := unknownChecks(checks, excluded); len(unknown) > 0 {
		fmt.Fprintf(&report, "warn: some health checks cannot be excluded: no matches for %s\n", strings.Join(unknown, ", "))
	}
	writeHealth(w, r, which, failed, report.String())
}

func (s *Server) checks(which string) []Check {
	checks := []Check{ping}
	for _, check := range s.cfg.Checks {
		if which == "readyz" || !check.Ready {
			checks = append(checks, check)
		}
	}
	return checks
}

func (s *Server) probe(r *http.Request, which string, check Check) bool {
	if check.Probe == nil {
		return true
	}
	err := check.Probe(r.Context())
	if err != nil {
		s.log.Warn("health check failed", "endpoint", which, "check", check.Name, "error", err)
	}
	return err == nil
}

func unknownChecks(checks []Check, excluded []string) []string {
	var unknown []string
	for _, name := range excluded {
		if !slices.ContainsFunc(checks, func(c Check) bool { return c.Name == name }) {
			unknown = append(unknown, fmt.Sprintf("%q", name))
		}
	}
	return unknown
}

func writeHealth(w http.ResponseWriter, r *http.Request, which string, failed bool, report string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	if failed {
		http.Error(w, fmt.Sprintf("%s%s check failed", report, which), http.StatusInternalServerError)
		return
	}
	if _, verbose := r.URL.Query()["verbose"]; !verbose {
		fmt.Fprint(w, "ok")
		return
	}
	fmt.Fprintf(w, "%s%s check passed\n", report, which)
}

// profile serves /debug/pprof.
func profile(w http.ResponseWriter, r *http.Request) {
	switch strings.TrimPrefix(r.URL.Path, "/debug/pprof/") {
	case "cmdline":
		pprof.Cmdline(w, r)
	case "profile":
		pprof.Profile(w, r)
	case "symbol":
		pprof.Symbol(w, r)
	case "trace":
		pprof.Trace(w, r)
	default:
		pprof.Index(w, r)
	}
}

// writeRaw writes a document that is not an API object.
func (s *Server) writeRaw(w http.ResponseWriter, r *http.Request, doc any) {
	out, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", contentJSON)
	w.Write(out)
}
