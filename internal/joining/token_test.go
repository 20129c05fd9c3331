package joining

import (
	"strings"
	"testing"
)

func TestParseToken(t *testing.T) {
	hash := strings.Repeat("ab", 32)
	for text, want := range map[string]*Token{
		"sesame":                       {Secret: "sesame"},
		"K10" + hash + "::node:sesame": {hash, "node", "sesame"},
		" K10" + strings.ToUpper(hash) + "::server:a:b\n": {hash, "server", "a:b"},
		"":                         nil,
		"two words":                nil,
		"K10abc::node:x":           nil,
		"K11" + hash + "::node:x":  nil,
		"K10" + hash + "::node":    nil,
		"K10" + hash + "::node:":   nil,
		"K10" + hash + "::" + ":x": nil,
	} {
		got, err := ParseToken(text)
		switch {
		case want == nil:
			if err == nil {
				t.Errorf("%q is taken for %+v", text, got)
			}
		case err != nil || got != *want:
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add("K10" + strings.Repeat("ab", 32) + "::node:sesame")
	f.Add("K10" + strings.Repeat("ab", 32) + "::node:one\nK10" + strings.Repeat("ab", 32) + "::node:two")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if err != nil {
			return
		}
		if again, err := ParseToken(token.String()); err != nil || again != token {
			t.Errorf("%q becomes %+v and then %+v, %v", text, token, again, err)
		}
	})
}
