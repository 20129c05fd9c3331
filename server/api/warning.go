package api

import (
	"net/http"
	"strings"
	"sync"
	"unicode/utf8"
)

// Limits of the Warning headers of one response in characters, as upstream has
// them: beyond the first, each text is cut to the second.
const (
	maxWarnings    = 4 * 1024
	maxWarningText = 256
)

// warner adds Warning headers, each text once.
func warner(w http.ResponseWriter) func(string) {
	warnings := &warnings{header: w.Header(), seen: make(map[string]bool)}
	return warnings.add
}

// warnings are those of one response.
type warnings struct {
	mu      sync.Mutex
	header  http.Header
	seen    map[string]bool
	size    int  // of what stands in header
	cutting bool // texts are cut
}

func (w *warnings) add(text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if text == "" || w.cutting && w.size >= maxWarnings {
		return
	}
	if len(text) > maxWarnings*utf8.UTFMax {
		text = cut(text, maxWarnings*utf8.UTFMax) // nobody will see more
	}
	if w.seen[text] {
		return
	}
	w.seen[text] = true
	if !w.cutting && w.size+utf8.RuneCountInString(text) > maxWarnings {
		w.startCutting()
	}
	w.write(text)
}

// startCutting writes anew, cut, what was written in full.
func (w *warnings) startCutting() {
	written := w.header.Values("Warning")
	w.header.Del("Warning")
	w.cutting, w.size = true, 0
	for _, header := range written {
		text := unquoteWarning(header)
		w.write(text)
	}
}

func (w *warnings) write(text string) {
	if w.cutting {
		if w.size >= maxWarnings {
			return
		}
		text = firstRunes(text, maxWarningText)
	}
	w.size += utf8.RuneCountInString(text)
	w.header.Add("Warning", warningPrefix+quoteWarning(text))
}

const warningPrefix = "299 - "

// firstRunes cuts text after n characters.
func firstRunes(text string, n int) string {
	for i := range text {
		if n == 0 {
			return text[:i]
		}
		n--
	}
	return text
}

// quoteWarning makes a quoted-string of RFC 9110: control characters become spaces.
func quoteWarning(text string) string {
	text = strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return ' '
		}
		return c
	}, text)
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text) + `"`
}

// unquoteWarning gives the text of a header that quoteWarning made.
func unquoteWarning(header string) string {
	text := strings.TrimSuffix(strings.TrimPrefix(header, warningPrefix+`"`), `"`)
	return strings.NewReplacer(`\\`, `\`, `\"`, `"`).Replace(text)
}
