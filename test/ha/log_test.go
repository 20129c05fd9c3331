package ha

import (
	"bufio"
	"encoding/json"
	"os"
	"testing"
)

// TestLog: a server that starts and is stopped has nothing to complain of, and
// all that it says is in the format that was asked for.
func TestLog(t *testing.T) {
	first := single(t)
	n := another(t, first.Network(), "--log-format", "json", "--advertise-address", "127.0.0.1") // which it warns of
	servers{n}.with(t, n)
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(n.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	levels := map[string]int{}
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var line struct{ Level, Msg string }
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Errorf("not JSON: %s", lines.Text())
		}
		if levels[line.Level]++; line.Level == "ERROR" {
			t.Errorf("an error: %s", lines.Text())
		}
	}
	if levels["INFO"] == 0 || levels["WARN"] == 0 {
		t.Errorf("lines by level: %v", levels)
	}
}
