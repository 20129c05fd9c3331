package node

import (
	"context"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// stallTrigger asks the kernel to tell when tasks waited for memory for more
// than 100 ms within a second (pressure stall information).
const stallTrigger = "some 100000 1000000"

// watchPressure wakes the status loop as soon as memory runs short, which may be
// long before its next look. Without pressure stall information in the kernel
// there are only the looks.
func (m *Manager) watchPressure(ctx context.Context) error {
	file, err := unix.Open("/proc/pressure/memory", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(file)
	if _, err := unix.Write(file, []byte(stallTrigger+"\x00")); err != nil {
		return nil
	}
	end, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil
	}
	defer unix.Close(end)
	var group errgroup.Group
	group.Go(func() error {
		<-ctx.Done()
		_, err := unix.Write(end, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		return err
	})
	for {
		fds := []unix.PollFd{{Fd: int32(file), Events: unix.POLLPRI}, {Fd: int32(end), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			m.log.Warn("memory pressure is not watched any more", "err", err)
			break
		}
		if fds[1].Revents != 0 || fds[0].Revents&unix.POLLERR != 0 {
			break
		}
		if fds[0].Revents&unix.POLLPRI != 0 {
			m.Wake()
		}
	}
	return group.Wait()
}

// readPIDs gives how many processes and threads there may be, and how many more
// there could be now; zero when unknown.
func readPIDs(root string) (total, free int64) {
	total, err := strconv.ParseInt(readFirst(root, "proc/sys/kernel/pid_max"), 10, 64)
	if err != nil {
		return 0, 0
	}
	if threads, err := strconv.ParseInt(readFirst(root, "proc/sys/kernel/threads-max"), 10, 64); err == nil {
		total = min(total, threads)
	}
	load, err := os.ReadFile("/proc/loadavg") // 0.00 0.01 0.05 1/234 5678: the 234
	if err != nil {
		return 0, 0
	}
	fields := strings.Fields(string(load))
	if len(fields) < 4 {
		return 0, 0
	}
	_, count, _ := strings.Cut(fields[3], "/")
	running, err := strconv.ParseInt(count, 10, 64)
	if err != nil {
		return 0, 0
	}
	return total, total - running
}
