package pod

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// exitedWith is a dead container whose termination message lies at path.
func exitedWith(path string) *runtimeapi.ContainerStatus {
	return &runtimeapi.ContainerStatus{
		State: runtimeapi.ContainerState_CONTAINER_EXITED, ExitCode: 1,
		Annotations: map[string]string{noteMessagePath: "/dev/termination-log", noteMessagePolicy: string(corev1.TerminationMessageReadFile)},
		Mounts:      []*runtimeapi.Mount{{ContainerPath: "/dev/termination-log", HostPath: path}},
	}
}

// What a container puts in the place of its termination message is not waited
// for and leads nowhere.
func TestTerminationMessageIsAFile(t *testing.T) {
	m, dir := &Manager{}, t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		unix.Mkfifo(path("fifo"), 0o666), os.Symlink("/etc/passwd", path("link")), os.Mkdir(path("directory"), 0o777),
		unix.Mknod(path("device"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))), // /dev/zero
		os.WriteFile(path("file"), bytes.Repeat([]byte("x"), mostMessage+1), 0o666), os.Truncate(path("file"), 1<<40),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"fifo", "link", "directory", "device"} {
		s := exitedWith(path(name))
		if m.lastWords(s); !strings.HasPrefix(s.Message, "Error on reading termination log: ") || strings.Contains(s.Message, "root:") {
			t.Errorf("%s: %q", name, s.Message)
		}
	}
	s := exitedWith(path("file"))
	if m.lastWords(s); len(s.Message) != mostMessage {
		t.Errorf("of a terabyte %d bytes are kept", len(s.Message))
	}
}

func TestLogTail(t *testing.T) {
	const mark = "2026-01-01T00:00:00.000000000Z stdout "
	path := filepath.Join(t.TempDir(), "0.log")
	long := strings.Repeat("a", 16<<10)
	for name, c := range map[string]struct{ log, want string }{
		"lines":         {mark + "F one\n" + mark + "F two\n", "one\ntwo\n"},
		"pieces":        {mark + "P one\n" + mark + "F two\n", "onetwo\n"},
		"one long line": {mark + "F " + long + "\n", long[:2047] + "\n"},
		"long pieces":   {mark + "P " + long + "\n" + mark + "P end\n", long[:2045] + "end"},
		"empty lines":   {mark + "F before\n" + strings.Repeat(mark+"F \n", 100), strings.Repeat("\n", 80)},
		"not utf8":      {mark + "F a\xffb\n", "ab\n"},
		"no marks":      {"nothing\n", ""},
	} {
		if err := os.WriteFile(path, []byte(c.log), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := logTail(path, mostLogMessage, mostMessageLines); got != c.want {
			t.Errorf("%s: %d bytes %.40q, want %d %.40q", name, len(got), got, len(c.want), c.want)
		}
	}
	fifo := path + "fifo"
	if err := unix.Mkfifo(fifo, 0o600); err != nil || logTail(fifo, 10, 10) != "" {
		t.Errorf("a FIFO has a tail: %v", err)
	}
}

func TestLogsOfDeadAttemptsAreRemoved(t *testing.T) {
	dir := t.TempDir()
	names := func() []string {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, e := range entries {
			all = append(all, e.Name())
		}
		return all
	}
	for _, name := range []string{"0.log", "1.log", "1.log.20260101-000000.gz", "2.log", "2.log.20260101-000000", "3.log", "4.log", "other"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := removeAttempts([]string{dir, dir + "/none"}, 2, map[int32]bool{2: true, 3: true}); err != nil {
		t.Fatal(err)
	}
	if got, want := names(), []string{"2.log", "2.log.20260101-000000", "3.log", "4.log", "other"}; !slices.Equal(got, want) {
		t.Errorf("left %v, want %v", got, want)
	}
}

// The containers of a pod share its hosts file and may write it.
func TestHostsFileOfAnySize(t *testing.T) {
	m := &Manager{cfg: Config{Dir: t.TempDir(), ClusterDomain: "cluster.local"}}
	p := newPod("a")
	if err := os.MkdirAll(m.podDir(p.UID), 0o700); err != nil {
		t.Fatal(err)
	}
	path, err := m.writeHosts(p, []string{"10.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<40); err != nil {
		t.Fatal(err)
	}
	if _, err := m.writeHosts(p, []string{"10.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestEnvironmentFiles(t *testing.T) {
	const text = "# comment\n\n A='1'\nB='two\nlines' # and more\nEMPTY= 'x'\nC='3'\n"
	for key, want := range map[string]string{"A": "1", "B": "two\nlines", "C": "3", "EMPTY": "", "D": ""} {
		if got, err := envFileValue(text, key); got != want || err != nil {
			t.Errorf("%s is %q, %v", key, got, err)
		}
	}
	for _, bad := range []string{"A", "A =''", "A=1", "A='1", "A='1'x\nB='2'", "=''"} {
		if _, err := envFileValue(bad, "B"); err == nil {
			t.Errorf("%q passes", bad)
		}
	}
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	m, err := New(Config{NodeName: "n", Dir: dir, Client: newAPI(nil), Runtime: struct {
		runtimeapi.RuntimeServiceClient
	}{}, Images: listedImages{}, Volumes: &memoryVolumes{}})
	if err != nil {
		t.Fatal(err)
	}
	e := environment{m: m, o: launchOrder{pod: newPod("a"), mounts: map[string]Mount{"v": {HostPath: dir}}}}
	for _, path := range []string{"fifo", "out", "../" + filepath.Base(dir) + "/fifo"} {
		if v, _, err := e.fileKey(&corev1.FileKeySelector{VolumeName: "v", Path: path, Key: "A"}); err == nil || v != "" {
			t.Errorf("%s gives %q", path, v)
		}
	}
}

func FuzzLogLine(f *testing.F) {
	f.Add("2026-01-01T00:00:00Z stdout P text\n", 3)
	f.Fuzz(func(t *testing.T, text string, lines int) {
		path := filepath.Join(t.TempDir(), "0.log")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := logTail(path, 100, max(0, lines)); len(got) > 100 {
			t.Error(fmt.Sprint(len(got), " bytes"))
		}
	})
}
