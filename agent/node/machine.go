package node

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Machine is what does not change while the machine runs.
type Machine struct {
	CPUs        int64
	MemoryBytes int64
	SwapBytes   int64
	HugePages   map[int64]int64 // bytes by page size
	MachineID   string
	SystemUUID  string
	BootID      string
	Kernel      string
	OSImage     string
}

// ReadMachine reads the machine whose file system is at root.
func ReadMachine(root string) (*Machine, error) {
	meminfo, err := readMeminfo(root)
	if err != nil {
		return nil, fmt.Errorf("read memory size: %w", err)
	}
	m := &Machine{
		CPUs:        int64(goruntime.NumCPU()),
		MemoryBytes: meminfo["MemTotal"],
		SwapBytes:   meminfo["SwapTotal"],
		HugePages:   hugePages(filepath.Join(root, "sys/kernel/mm/hugepages")),
		MachineID:   readFirst(root, "etc/machine-id", "var/lib/dbus/machine-id"),
		SystemUUID:  strings.ToLower(readFirst(root, "sys/class/dmi/id/product_uuid", "proc/device-tree/vm,uuid", "etc/machine-id")),
		BootID:      readFirst(root, "proc/sys/kernel/random/boot_id"),
		Kernel:      readFirst(root, "proc/sys/kernel/osrelease"),
		OSImage:     osImage(root),
	}
	if m.MemoryBytes == 0 {
		return nil, errors.New("read memory size: /proc/meminfo has no MemTotal")
	}
	return m, nil
}

// readMeminfo gives the lines of /proc/meminfo in bytes.
func readMeminfo(root string) (map[string]int64, error) {
	file, err := os.Open(filepath.Join(root, "proc/meminfo"))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	values := map[string]int64{}
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		name, rest, _ := strings.Cut(lines.Text(), ":")
		number, unit, _ := strings.Cut(strings.TrimSpace(rest), " ")
		value, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			continue
		}
		if unit == "kB" {
			value <<= 10
		}
		values[name] = value
	}
	return values, lines.Err()
}

// hugePages reads folders such as hugepages-2048kB.
func hugePages(dir string) map[int64]int64 {
	pages := map[int64]int64{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return pages // no huge pages in this kernel
	}
	for _, e := range entries {
		size, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB"), 10, 64)
		if err != nil {
			continue
		}
		count, _ := strconv.ParseInt(readFirst(dir, e.Name()+"/nr_hugepages"), 10, 64)
		pages[size<<10] = count * (size << 10)
	}
	return pages
}

// readFirst gives the content of the first of paths that has any.
func readFirst(root string, paths ...string) string {
	for _, p := range paths {
		data, err := fs.ReadFile(os.DirFS(root), p)
		if text := strings.TrimRight(string(data), "\n\x00 "); err == nil && text != "" {
			return text
		}
	}
	return ""
}

// osImage is the distribution's own name, from os-release(5).
func osImage(root string) string {
	for line := range strings.Lines(readFirst(root, "etc/os-release", "usr/lib/os-release")) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			return strings.Trim(value, `"'`)
		}
	}
	return "Linux"
}

// capacity is what the machine has, with a node file system of disk bytes.
func (m *Machine) capacity(disk, pods int64) corev1.ResourceList {
	list := corev1.ResourceList{
		corev1.ResourceCPU:              *resource.NewQuantity(m.CPUs, resource.DecimalSI),
		corev1.ResourceMemory:           *resource.NewQuantity(m.MemoryBytes, resource.BinarySI),
		corev1.ResourcePods:             *resource.NewQuantity(pods, resource.DecimalSI),
		corev1.ResourceEphemeralStorage: *resource.NewQuantity(disk, resource.BinarySI),
	}
	for size, bytes := range m.HugePages {
		name := corev1.ResourceHugePagesPrefix + resource.NewQuantity(size, resource.BinarySI).String()
		list[corev1.ResourceName(name)] = *resource.NewQuantity(bytes, resource.BinarySI)
	}
	return list
}

// allocatable is capacity without what is reserved, what eviction keeps free,
// and for memory what huge pages took.
func allocatable(capacity, reserved corev1.ResourceList) corev1.ResourceList {
	list := capacity.DeepCopy()
	take := func(name corev1.ResourceName, amount resource.Quantity) {
		value, ok := list[name]
		if !ok {
			return
		}
		value.Sub(amount)
		if value.Sign() < 0 {
			value.Set(0)
		}
		list[name] = value
	}
	for name, amount := range reserved {
		take(name, amount)
	}
	take(corev1.ResourceMemory, *resource.NewQuantity(memoryFloor, resource.BinarySI))
	disk := capacity[corev1.ResourceEphemeralStorage]
	take(corev1.ResourceEphemeralStorage, *resource.NewQuantity(int64(float64(disk.Value())*nodeFloor), resource.BinarySI))
	for name, amount := range capacity {
		if strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix) {
			take(corev1.ResourceMemory, amount)
		}
	}
	return list
}
