// Package join makes a server's first day: the objects every cluster starts
// with, the kubeconfig and the tokens, and the door at which agents join.
package join
