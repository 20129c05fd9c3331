package pod

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// containerConfig turns a container's spec into its config. Errors are shown
// as CreateContainerConfigError.
func (m *Manager) containerConfig(ctx context.Context, o launchOrder, image imageRef) (*runtimeapi.ContainerConfig, error) {
	if o.unit.target != "" && o.target == "" {
		return nil, fmt.Errorf("unable to find target container %v", o.unit.target)
	}
	env, err := m.environ(ctx, o)
	if err != nil {
		return nil, err
	}
	security, err := m.containerSecurity(o, image.user)
	if err != nil {
		return nil, err
	}
	mounts, err := m.mounts(ctx, o, env)
	if err != nil {
		return nil, err
	}
	mapUsers(mounts, security.NamespaceOptions.UsernsOptions)
	if err := os.MkdirAll(filepath.Join(m.podLogDir(o.pod), o.unit.Name), 0o755); err != nil {
		return nil, fmt.Errorf("create container log directory for container %s failed: %w", o.unit.Name, err)
	}
	lookup := func(name string) (string, bool) { v, ok := env[name]; return v, ok }
	config := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: o.unit.Name, Attempt: uint32(o.attempt)},
		Image:    &runtimeapi.ImageSpec{Image: image.id, UserSpecifiedImage: o.unit.Image, RuntimeHandler: o.handler},
		Command:  expandAll(o.unit.Command, lookup), Args: expandAll(o.unit.Args, lookup),
		WorkingDir: o.unit.WorkingDir, Envs: keyValues(env), Mounts: mounts,
		Labels: map[string]string{
			labelPod: o.pod.Name, labelNamespace: o.pod.Namespace, labelUID: string(o.pod.UID), labelContainer: o.unit.Name,
		},
		Annotations: containerNotes(o),
		LogPath:     filepath.Join(o.unit.Name, fmt.Sprintf("%d.log", o.attempt)),
		Stdin:       o.unit.Stdin, StdinOnce: o.unit.StdinOnce, Tty: o.unit.TTY,
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: m.containerResources(o.pod, o.unit.Container), SecurityContext: security,
		},
	}
	if l := o.unit.Lifecycle; l != nil && l.StopSignal != nil {
		config.StopSignal = runtimeapi.Signal(runtimeapi.Signal_value[string(*l.StopSignal)])
	}
	return config, nil
}

func expandAll(all []string, lookup func(string) (string, bool)) []string {
	var out []string
	for _, s := range all {
		out = append(out, expand(s, lookup))
	}
	return out
}

func keyValues(env map[string]string) []*runtimeapi.KeyValue {
	var all []*runtimeapi.KeyValue
	for _, k := range slices.Sorted(maps.Keys(env)) {
		all = append(all, &runtimeapi.KeyValue{Key: k, Value: []byte(env[k])})
	}
	return all
}

// containerNotes writes into the container what is needed to adopt, restart or
// stop it without the pod's spec.
func containerNotes(o launchOrder) map[string]string {
	notes := map[string]string{
		noteHash:          hashOf(o.unit.Container),
		noteRestarts:      strconv.Itoa(int(o.attempt)),
		noteBackoff:       strconv.Itoa(int(o.backoff / time.Second)),
		noteMessagePath:   o.unit.TerminationMessagePath,
		noteMessagePolicy: string(o.unit.TerminationMessagePolicy),
	}
	if g := o.pod.Spec.TerminationGracePeriodSeconds; g != nil {
		notes[noteGrace] = strconv.FormatInt(*g, 10)
	}
	if l := o.unit.Lifecycle; l != nil && l.PreStop != nil {
		if raw, err := json.Marshal(l.PreStop); err == nil {
			notes[notePreStop] = string(raw)
		}
	}
	if len(o.unit.Ports) > 0 {
		if raw, err := json.Marshal(o.unit.Ports); err == nil {
			notes[notePorts] = string(raw)
		}
	}
	return notes
}

// mounts gives the container's mounts: volumes, the hosts file, the file for
// its termination message.
func (m *Manager) mounts(ctx context.Context, o launchOrder, env map[string]string) ([]*runtimeapi.Mount, error) {
	var all []*runtimeapi.Mount
	hosts := true
	for i, vm := range o.unit.VolumeMounts {
		hosts = hosts && vm.MountPath != "/etc/hosts"
		mount, err := m.volumeMount(ctx, o, i, vm, env)
		if err != nil {
			return nil, err
		}
		all = append(all, mount)
	}
	if hosts && (len(o.ips) > 0 || o.pod.Spec.HostNetwork) {
		file, err := m.writeHosts(o.pod, o.ips)
		if err != nil {
			return nil, err
		}
		all = append(all, &runtimeapi.Mount{ContainerPath: "/etc/hosts", HostPath: file})
	}
	if o.unit.TerminationMessagePath != "" {
		file, err := m.makeMessageFile(o)
		if err != nil {
			return nil, err
		}
		all = append(all, &runtimeapi.Mount{ContainerPath: absolute(o.unit.TerminationMessagePath), HostPath: file})
	}
	return all, nil
}

func (m *Manager) volumeMount(ctx context.Context, o launchOrder, index int, vm corev1.VolumeMount, env map[string]string) (*runtimeapi.Mount, error) {
	sub, err := subPath(vm, env)
	if err != nil {
		return nil, err
	}
	out := &runtimeapi.Mount{ContainerPath: absolute(vm.MountPath), Readonly: vm.ReadOnly}
	if image := imageVolume(o.pod, vm.Name); image != nil {
		ref, fault := m.images.volume(ctx, o, image)
		if fault != nil {
			return nil, fault
		}
		out.Image, out.ImageSubPath, out.Readonly = &runtimeapi.ImageSpec{Image: ref.id, UserSpecifiedImage: image.Reference}, sub, true
		return out, nil
	}
	volume, ok := o.mounts[vm.Name]
	if !ok {
		return nil, fmt.Errorf("cannot find volume %q to mount into container %q", vm.Name, o.unit.Name)
	}
	out.HostPath = volume.HostPath
	out.Readonly = vm.ReadOnly || volume.ReadOnly
	out.SelinuxRelabel = volume.SELinuxRelabel && !out.Readonly
	out.RecursiveReadOnly = recursiveReadOnly(vm)
	if sub != "" {
		out.HostPath, err = m.cfg.Volumes.Subpath(ctx, o.pod, o.unit.Name, index, volume, sub)
		if err != nil {
			return nil, fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: %w", vm.Name, o.unit.Name, err)
		}
	}
	if p := vm.MountPropagation; p != nil {
		switch *p {
		case corev1.MountPropagationHostToContainer:
			out.Propagation = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		case corev1.MountPropagationBidirectional:
			out.Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
		}
	}
	return out, nil
}

// recursiveReadOnly is on where it is asked for: runc and every kernel we run
// on can do it.
func recursiveReadOnly(vm corev1.VolumeMount) bool {
	return vm.ReadOnly && vm.RecursiveReadOnly != nil && *vm.RecursiveReadOnly != corev1.RecursiveReadOnlyDisabled
}

func subPath(vm corev1.VolumeMount, env map[string]string) (string, error) {
	sub := vm.SubPath
	if vm.SubPathExpr != "" {
		missing := ""
		sub = expand(vm.SubPathExpr, func(name string) (string, bool) {
			v, ok := env[name]
			if !ok {
				missing = name
			}
			return v, ok
		})
		if missing != "" {
			return "", fmt.Errorf("missing value for %q", missing)
		}
	}
	if filepath.IsAbs(sub) {
		return "", fmt.Errorf("error SubPath `%s` must not be an absolute path", sub)
	}
	if slices.Contains(strings.Split(sub, "/"), "..") {
		return "", fmt.Errorf("unable to provision SubPath `%s`: must not contain '..'", sub)
	}
	return sub, nil
}

func imageVolume(pod *corev1.Pod, name string) *corev1.ImageVolumeSource {
	for i := range pod.Spec.Volumes {
		if pod.Spec.Volumes[i].Name == name {
			return pod.Spec.Volumes[i].Image
		}
	}
	return nil
}

func absolute(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return "/" + path
}
