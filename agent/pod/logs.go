package pod

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"orch/agent/disk"
)

const (
	logSize   = 10 << 20
	logFiles  = 5 // the current one included
	logPeriod = 20 * time.Second
	logSuffix = "20060102-150405"
)

// rotateLogs looks at the sizes of running containers' logs at a slow pace. No
// event tells that a file has grown, and one stat per container costs nothing.
func (m *Manager) rotateLogs(ctx context.Context) error {
	for {
		t := time.NewTimer(logPeriod + rand.N(logPeriod/4))
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
		for _, s := range m.Pods() {
			for _, c := range s.Containers {
				if c.State != runtimeapi.ContainerState_CONTAINER_RUNNING || c.LogPath == "" {
					continue
				}
				if info, err := os.Lstat(c.LogPath); err != nil || !info.Mode().IsRegular() || info.Size() < logSize {
					continue
				}
				if err := m.rotate(ctx, c.ID, c.LogPath); err != nil {
					m.log.Warn("rotate log", "path", c.LogPath, "err", err)
				}
			}
		}
	}
}

// rotate moves a log aside, makes the runtime open a new one, compresses all
// but the newest rotated one and removes the oldest.
func (m *Manager) rotate(ctx context.Context, id, path string) error {
	aside := path + "." + m.now().UTC().Format(logSuffix)
	if err := os.Rename(path, aside); err != nil {
		return err
	}
	if _, err := m.cfg.Runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		return errors.Join(err, os.Rename(aside, path)) // the runtime goes on writing to it
	}
	rotated, err := rotatedLogs(path)
	if err != nil {
		return err
	}
	for len(rotated) > logFiles-1 {
		if err := os.Remove(rotated[0]); err != nil {
			return err
		}
		rotated = rotated[1:]
	}
	for _, old := range rotated[:len(rotated)-1] {
		if strings.HasSuffix(old, ".gz") {
			continue
		}
		if err := compress(old); err != nil {
			return err
		}
	}
	return nil
}

// rotatedLogs gives what rotation made of a log, oldest first.
func rotatedLogs(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path)) // by name, which ends in the time
	if err != nil {
		return nil, err
	}
	var rotated []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), filepath.Base(path)+".") {
			rotated = append(rotated, filepath.Join(filepath.Dir(path), e.Name()))
		}
	}
	return rotated, nil
}

// removeAttempts removes the logs and termination messages of a container's
// attempts that are not among those kept. Attempts later than the last one that
// was removed are left alone: they may be about to start.
func removeAttempts(dirs []string, last int32, kept map[int32]bool) error {
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		for _, e := range entries {
			number, _, _ := strings.Cut(e.Name(), ".") // 3.log, 3.log.20060102-150405.gz, 3
			n, err := strconv.ParseInt(number, 10, 32)
			if err != nil || n > int64(last) || kept[int32(n)] {
				continue
			}
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// compress replaces a file by its gzip; a half-written one is not left behind.
func compress(path string) (err error) {
	in, err := disk.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	half := path + ".gz.part"
	_ = os.Remove(half) // of an agent that was killed
	out, err := os.OpenFile(half, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(half)
		}
	}()
	w := gzip.NewWriter(out)
	_, err = io.Copy(w, in)
	if err := errors.Join(err, w.Close(), out.Close()); err != nil {
		return err
	}
	if err := os.Rename(half, path+".gz"); err != nil {
		return err
	}
	return os.Remove(path)
}

// What a line of a log has at most: the CRI format's marks, and text; longer ones
// are in pieces.
const (
	logMarks = 64
	logText  = 16 << 10
)

// logTail gives the end of a log without the CRI format's marks: the last
// lines, in at most that many bytes.
func logTail(path string, most, lines int) string {
	raw, cut, err := disk.Tail(path, int64(most+logText+(lines+1)*logMarks))
	if err != nil {
		return ""
	}
	var b strings.Builder
	all := slices.Collect(strings.Lines(string(raw)))
	if len(all) > lines {
		all, cut = all[len(all)-lines:], false
	}
	if cut { // the first line's marks lie before what was read; it counts if it is the only one
		b.WriteString(all[0])
		all = all[1:]
	}
	for _, line := range all {
		if text, partial, ok := logLine(line); ok {
			b.WriteString(text)
			if !partial {
				b.WriteByte('\n')
			}
		}
	}
	text := b.String()
	return strings.ToValidUTF8(text[max(0, len(text)-most):], "")
}

// logLine takes a CRI log line apart: time, stream, tag, text.
func logLine(line string) (text string, partial, ok bool) {
	parts := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
	if len(parts) < 4 {
		return "", false, false
	}
	return parts[3], parts[2] == "P", true
}
