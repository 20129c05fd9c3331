package registry

import (
	"context"
	"strings"
	"unicode"
	"unicode/utf8"
)

type managerKey struct{}
type warningsKey struct{}

// defaultManager owns the fields written by code inside the server that does
// not name itself.
const defaultManager = "orch"

// WithFieldManager names who owns the fields that writes under ctx change, when
// the request's options do not: the caller's name or its User-Agent.
func WithFieldManager(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, managerKey{}, managerName(name))
}

// managerName keeps the printable start of a User-Agent up to the first slash,
// at most 128 bytes, as field managers must be.
func managerName(agent string) string {
	agent, _, _ = strings.Cut(agent, "/")
	var b strings.Builder
	for _, c := range agent {
		if !unicode.IsPrint(c) {
			continue
		}
		if b.Len()+utf8.RuneLen(c) > 128 {
			break
		}
		b.WriteRune(c)
	}
	return b.String()
}

// fieldManager picks the manager of a write.
func fieldManager(ctx context.Context, asked string) string {
	if asked != "" {
		return asked
	}
	if name, ok := ctx.Value(managerKey{}).(string); ok {
		return name
	}
	return defaultManager
}

// WithWarnings gives a context whose warnings go to record, for the response's
// Warning headers.
func WithWarnings(ctx context.Context, record func(text string)) context.Context {
	return context.WithValue(ctx, warningsKey{}, record)
}

// AddWarning tells the client something, if anyone listens.
func AddWarning(ctx context.Context, text string) {
	if record, ok := ctx.Value(warningsKey{}).(func(string)); ok {
		record(text)
	}
}
