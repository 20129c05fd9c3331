package version

import (
	"strings"
	"testing"
)

func TestSkew(t *testing.T) {
	for _, tt := range []struct{ there, here, agent, server string }{
		{"v1.37.2+orch", "v1.37.0+orch", "", ""},
		{"v1.37.2+orch", "", "", ""},
		{"v1.37.2+orch", "v1.38.0", "must not be newer", ""},
		{"v1.37.2+orch", "v1.39.0", "must not be newer", "1 minor version apart"},
		{"v1.37.2+orch", "v1.34.9", "", "1 minor version apart"},
		{"v1.37.2+orch", "v1.33.9", "3 minor versions older", "1 minor version apart"},
		{"v1.37.2+orch", "v1.36.1", "", ""},
		{"v2.0.0", "v1.99.0", "3 minor versions older", "1 minor version apart"},
		{"v1.37.2+orch", "new", "version \"new\"", "version \"new\""},
	} {
		for role, got := range map[string]error{tt.agent: AgentSkew(tt.there, tt.here), "server:" + tt.server: ServerSkew(tt.there, tt.here)} {
			want := strings.TrimPrefix(role, "server:")
			if want == "" && got != nil || want != "" && (got == nil || !strings.Contains(got.Error(), want)) {
				t.Errorf("%s joins %s: %v, want %q", tt.here, tt.there, got, want)
			}
		}
	}
}
