// Package runc pins the version of runc that orch embeds. It is a module of
// its own because runc and containerd want different versions of the same
// libraries.
package runc
