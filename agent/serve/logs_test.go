package serve

import (
	"bufio"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"orch/agent/pod"
)

const logText = `2026-01-01T00:00:00.000000000Z stdout P o
2026-01-01T00:00:00.000000000Z stdout F ne
2026-01-01T00:00:01.000000000Z stderr F two
2026-01-01T00:00:02.000000000Z stdout F three
`

// logged gives the world's container a log.
func (w *world) logged(t *testing.T, text string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "0.log")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	w.pods[0].Containers[0].LogPath = path
	w.pods[0].Status.ContainerStatuses = []corev1.ContainerStatus{{
		Name: "c", ContainerID: "containerd://c1", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
	}}
}

func TestLogs(t *testing.T) {
	w := newWorld(t)
	w.logged(t, logText)
	for query, want := range map[string]string{
		"":                               "200 one\ntwo\nthree\n",
		"tailLines=1":                    "200 three\n",
		"tailLines=0":                    "200 ",
		"limitBytes=5":                   "200 one\nt",
		"timestamps=true&tailLines=2":    "200 2026-01-01T00:00:01.000000000Z two\n2026-01-01T00:00:02.000000000Z three\n",
		"sinceTime=2026-01-01T00:00:01Z": "200 two\nthree\n",
		"stream=Stderr":                  "200 two\n",
		"tailLines=-1":                   "400 tailLines, limitBytes and sinceSeconds must not be negative\n",
		"tailLines=x":                    "400 tailLines: \"x\" is not a number\n",
		"follow=true":                    "200 one\ntwo\nthree\n", // the container has ended
		"previous=true":                  "400 previous terminated container \"c\" in pod \"web\" not found\n",
	} {
		code, body := w.get("/containerLogs/ns/web/c?" + query)
		if got := fmt.Sprintf("%d %s", code, body); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	for path, want := range map[string]string{
		"/containerLogs/ns/none/c":   "404 pod \"none\" does not exist\n",
		"/containerLogs/ns/web/none": "404 container \"none\" not found in pod \"web\"\n",
	} {
		code, body := w.get(path)
		if got := fmt.Sprintf("%d %s", code, body); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

// The answer to a follower begins at once and grows with the log.
func TestFollow(t *testing.T) {
	w := newWorld(t)
	w.runtime.running.Store(true)
	w.logged(t, "")
	resp, err := http.Get(w.at("/containerLogs/ns/web/c", url.Values{"follow": {"true"}}).String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for i := range 3 {
		log, err := os.OpenFile(w.pods[0].Containers[0].LogPath, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(log, "2026-01-01T00:00:00.000000000Z stdout F line %d\n", i)
		log.Close()
		if line, err := lines.ReadString('\n'); err != nil || line != fmt.Sprintf("line %d\n", i) {
			t.Fatalf("%q, %v", line, err)
		}
	}
}

func TestChooseAttempt(t *testing.T) {
	waiting := func(reason string) corev1.ContainerState {
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}
	}
	ended := func(id string) corev1.ContainerState {
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ContainerID: id}}
	}
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	for name, c := range map[string]struct {
		state, last corev1.ContainerState
		previous    bool
		want        string
	}{
		"running":                  {running, ended("x://1"), false, "2"},
		"previous of running":      {running, ended("x://1"), true, "1"},
		"ended":                    {ended("x://2"), corev1.ContainerState{}, false, "2"},
		"crashing":                 {waiting("CrashLoopBackOff"), ended("x://2"), false, "2"},
		"previous of crashing":     {waiting("CrashLoopBackOff"), ended("x://2"), true, "2"},
		"creating":                 {waiting("ContainerCreating"), corev1.ContainerState{}, false, `container "c" in pod "web" is waiting to start: ContainerCreating`},
		"no image":                 {waiting("ErrImagePull"), corev1.ContainerState{}, false, `container "c" in pod "web" is waiting to start: image can't be pulled`},
		"still no image":           {waiting("ImagePullBackOff"), corev1.ContainerState{}, false, `container "c" in pod "web" is waiting to start: trying and failing to pull image`},
		"never started":            {ended(""), corev1.ContainerState{}, false, `container "c" in pod "web" is terminated`},
		"no previous":              {running, corev1.ContainerState{}, true, `previous terminated container "c" in pod "web" not found`},
		"removed by the collector": {ended("x://0"), corev1.ContainerState{}, false, "unable to retrieve container logs for 0: the container has been removed"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &pod.Snapshot{Pod: &corev1.Pod{}, Containers: []pod.Container{{Name: "c", ID: "2"}, {Name: "c", ID: "1"}}}
			s.Pod.Name = "web"
			s.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", ContainerID: "x://2", State: c.state, LastTerminationState: c.last}}
			chosen, err := chooseAttempt(s, "c", c.previous)
			got := fmt.Sprint(err)
			if err == nil {
				got = chosen.ID
			}
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
	_, err := chooseAttempt(&pod.Snapshot{Pod: &corev1.Pod{}}, "c", false)
	if err == nil || !strings.Contains(err.Error(), "is not available") {
		t.Error(err)
	}
}

// What somebody put into the folder of logs leads nowhere.
func TestServedLogFiles(t *testing.T) {
	dir := t.TempDir()
	for _, err := range []error{
		os.Mkdir(filepath.Join(dir, "pod"), 0o755), os.WriteFile(filepath.Join(dir, "pod/0.log"), []byte("hello"), 0o600),
		os.Symlink("/etc/passwd", filepath.Join(dir, "out")), os.Symlink("/etc", filepath.Join(dir, "outside")),
		unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	handler := http.FileServerFS(logFiles(dir))
	for path, want := range map[string]int{"/pod/0.log": 200, "/pod/": 200, "/": 200, "/out": 500, "/outside/passwd": 500, "/fifo": 500, "/none": 404} {
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, path, nil))
		if answer.Code != want || strings.Contains(answer.Body.String(), "root:x") {
			t.Errorf("%s: %d, want %d", path, answer.Code, want)
		}
	}
}
