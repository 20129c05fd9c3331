package runtime

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// layout names the runtime's folders and sockets.
type layout struct {
	bin     string // unpacked programs
	root    string // containerd: images, snapshots, metadata
	state   string // containerd: what a reboot makes void
	socket  string // containerd: gRPC, CRI included
	shims   string // sockets of the shims
	certs   string // registry hosts, made from registries.yaml
	cniConf string
	images  string // archives laid out by the operator
	ledger  string // which archives were imported
	lock    string
}

// Socket paths are limited to 108 bytes by the kernel; containerd allows itself
// 42 for the folder of the shims' sockets, whose names are hashes.
const (
	maxSocket    = 100
	maxSocketDir = 42
)

func newLayout(dataDir string) layout {
	agent := filepath.Join(dataDir, "agent")
	containerd := filepath.Join(agent, "containerd")
	l := layout{
		bin:     filepath.Join(agent, "bin"),
		root:    filepath.Join(containerd, "root"),
		state:   filepath.Join(containerd, "state"),
		socket:  filepath.Join(containerd, "containerd.sock"),
		shims:   filepath.Join(containerd, "s"),
		certs:   filepath.Join(containerd, "certs.d"),
		cniConf: filepath.Join(agent, "cni", "net.d"),
		images:  filepath.Join(dataDir, "images"),
		ledger:  filepath.Join(containerd, "archives.json"),
		lock:    filepath.Join(containerd, "lock"),
	}
	// A long data directory gets a short name under /run; the same directory
	// always gets the same one, so that shims are found again.
	sum := sha256.Sum256([]byte(filepath.Clean(dataDir)))
	short := filepath.Join("/run/orch", hex.EncodeToString(sum[:6]))
	if len(l.socket+".ttrpc") > maxSocket {
		l.socket = filepath.Join(short, "containerd.sock")
	}
	if len(l.shims) > maxSocketDir {
		l.shims = filepath.Join(short, "s")
	}
	return l
}

// prepare makes the folders and takes the lock that keeps a second orch out of
// the same data directory.
func (l layout) prepare() (unlock func(), err error) {
	for dir, mode := range map[string]os.FileMode{
		l.bin: 0o755, l.root: 0o700, l.state: 0o711, l.shims: 0o711, l.certs: 0o700,
		l.cniConf: 0o755, l.images: 0o755, filepath.Dir(l.socket): 0o711,
	} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return nil, err
		}
	}
	containerd := filepath.Dir(l.root)
	for _, dir := range []string{filepath.Dir(l.images), filepath.Dir(containerd), containerd} {
		if err := letThrough(dir); err != nil {
			return nil, err
		}
	}
	file, err := os.OpenFile(l.lock, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		file.Close()
		return nil, fmt.Errorf("another orch uses this data directory (lock %s): %w", l.lock, err)
	}
	if err := l.forgetReboot(); err != nil {
		file.Close()
		return nil, fmt.Errorf("clear state from before the reboot: %w", err)
	}
	return func() { file.Close() }, nil
}

// letThrough lets every user pass a directory, though not list it: a pod with
// users of its own reaches its root file system on this way. What lies in it is
// closed where it must be.
func letThrough(dir string) error {
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm()&0o011 == 0o011 {
		return err
	}
	return os.Chmod(dir, info.Mode().Perm()|0o011)
}

// forgetReboot empties the state folder when the machine was started anew since
// it was written: like /run it describes processes, mounts and namespaces that
// no longer exist.
func (l layout) forgetReboot() error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	record := filepath.Join(l.state, "boot-id")
	last, err := os.ReadFile(record)
	switch {
	case err == nil && bytes.Equal(last, boot):
		return nil
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return err
	case err == nil:
		if err := os.RemoveAll(l.state); err != nil {
			return err
		}
		if err := os.MkdirAll(l.state, 0o711); err != nil {
			return err
		}
	}
	return os.WriteFile(record, boot, 0o600)
}

// leadPath puts the unpacked programs first in the process's search path, the
// only place where containerd looks for the shim of a container that it adopts
// and the shim for runc.
func (l layout) leadPath() error {
	path := os.Getenv("PATH")
	if strings.HasPrefix(path, l.bin+":") {
		return nil
	}
	return os.Setenv("PATH", l.bin+":"+path)
}
