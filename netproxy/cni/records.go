package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"orch/netproxy/wire"
)

// record is what the node remembers of one attached sandbox.
type record struct {
	ID       string             `json:"id"`
	NetNS    string             `json:"netns"`
	IfName   string             `json:"ifName"`
	Addr     netip.Addr         `json:"addr"`
	HostLink string             `json:"hostLink"`
	Pod      string             `json:"pod,omitempty"` // namespace/name, for people
	Ports    []wire.PortMapping `json:"ports,omitempty"`
}

// records keeps one small file per attached sandbox.
//
// The files are written whole and renamed, so they survive the death of the
// process. They are not synced to disk: a machine that lost power has lost its
// sandboxes too, and a record without a living network namespace is dropped.
type records struct{ dir string }

const (
	recordSuffix = ".json"
	lastName     = "last-address"
)

func (r records) path(id string) string { return filepath.Join(r.dir, id+recordSuffix) }

func (r records) save(rec *record) error {
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return replaceFile(r.path(rec.ID), data, 0o600)
}

func (r records) remove(id string) error {
	if err := os.Remove(r.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove sandbox record: %w", err)
	}
	return nil
}

// load reads every record. A file that does not decode was cut by a power
// loss and describes a sandbox that no longer exists: it is removed.
func (r records) load() ([]*record, error) {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make sandbox records: %w", err)
	}
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, fmt.Errorf("read sandbox records: %w", err)
	}
	var all []*record
	for _, entry := range entries {
		id, isRecord := strings.CutSuffix(entry.Name(), recordSuffix)
		if !isRecord {
			continue
		}
		data, err := os.ReadFile(r.path(id))
		if err != nil {
			return nil, fmt.Errorf("read sandbox record: %w", err)
		}
		rec := new(record)
		if json.Unmarshal(data, rec) != nil || rec.ID != id || !rec.Addr.Is4() {
			if err := r.remove(id); err != nil {
				return nil, err
			}
			continue
		}
		all = append(all, rec)
	}
	return all, nil
}

// saveLast remembers the address given last, from which the turn goes on
// after a restart. Losing it only shortens an address's rest.
func (r records) saveLast(addr netip.Addr) {
	_ = os.WriteFile(filepath.Join(r.dir, lastName), []byte(addr.String()), 0o600)
}

func (r records) loadLast() netip.Addr {
	data, _ := os.ReadFile(filepath.Join(r.dir, lastName))
	addr, _ := netip.ParseAddr(string(data))
	return addr
}

// replaceFile writes data to path so that a reader sees the old or the new
// content, never a part.
func replaceFile(path string, data []byte, mode os.FileMode) error {
	temporary := path + ".new"
	if err := os.WriteFile(temporary, data, mode); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return nil
}
