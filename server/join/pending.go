package join

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"orch/internal/joining"
	"orch/internal/pki"
)

// pendingFile lies in the store's folder, so that it comes into force in the same
// step as a restored state. It holds what a server gets when it joins.
const pendingFile = "keys.json"

// LeavePending writes into a store's folder the keys of the cluster whose state
// is there. TakePending puts them in their places.
func LeavePending(store string, answer *joining.ServerAnswer) error {
	for _, name := range shared {
		if len(answer.Files[name]) == 0 {
			return fmt.Errorf("%s is missing: it may come from another version of orch", name)
		}
	}
	data, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	return pki.WriteFile(filepath.Join(store, pendingFile), data, 0o600)
}

// TakePending finishes what LeavePending began, if it did, however often it was
// cut short. dir is <data-dir>/server.
func TakePending(dir string) error {
	path := filepath.Join(dir, "store", pendingFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	answer := &joining.ServerAnswer{}
	if err := json.Unmarshal(data, answer); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := keepFiles(dir, answer); err != nil {
		return err
	}
	return os.Remove(path)
}

// SameCluster tells whether the files are of the cluster whose keys are in dir.
func SameCluster(dir string, files map[string][]byte) (bool, error) {
	name := shared[len(shared)-1]
	own, err := os.ReadFile(filepath.Join(dir, name))
	return bytes.Equal(own, files[name]), err
}

// AddEncryptionKeys makes sure that what was sealed with the keys of files can be
// opened here; the own ones go on sealing.
func AddEncryptionKeys(dir string, files map[string][]byte) error {
	const name = "tls/encryption.keys"
	path := filepath.Join(dir, name)
	own, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	all := strings.Split(strings.TrimSpace(string(own)), "\n")
	if len(own) == 0 {
		all = nil
	}
	known := len(all)
	for line := range strings.Lines(string(files[name])) {
		if line = strings.TrimSpace(line); line != "" && !slices.Contains(all, line) {
			all = append(all, line)
		}
	}
	if len(all) == known {
		return nil
	}
	return pki.WriteFile(path, []byte(strings.Join(all, "\n")+"\n"), 0o600)
}
