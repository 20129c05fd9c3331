package kernel

import (
	"errors"
	"os"
	"strconv"
)

// What kube-proxy sets of connection tracking, and its defaults.
const (
	conntrack            = "net/netfilter/nf_conntrack_"
	conntrackPerCore     = 32 << 10
	conntrackMin         = 128 << 10
	conntrackMax         = 1 << 20
	conntrackHashSize    = "/sys/module/nf_conntrack/parameters/hashsize"
	establishedSeconds   = "86400"
	closeWaitSeconds     = "3600"
	connectionsPerBucket = 4
)

// TrackConnections sets connection tracking as kube-proxy does: room for as many
// connections as a node of so many cores may have, an end to those that neither
// side closes, and time for those that only one side closed. What cannot be set
// here (the number is the machine's, and read-only in its network namespaces) is
// in the error; the rest is set all the same.
func TrackConnections(cores int) error {
	errs := []error{
		Set(conntrack+"tcp_timeout_established", establishedSeconds),
		Set(conntrack+"tcp_timeout_close_wait", closeWaitSeconds),
	}
	room := connectionRoom(cores)
	if now, err := Number(conntrack + "max"); err == nil && now < room {
		errs = append(errs, Set(conntrack+"max", strconv.Itoa(room)))
	}
	if now, err := numberIn(conntrackHashSize); err == nil && now < room/connectionsPerBucket {
		errs = append(errs, os.WriteFile(conntrackHashSize, []byte(strconv.Itoa(room/connectionsPerBucket)), 0))
	}
	return errors.Join(errs...)
}

func connectionRoom(cores int) int {
	return min(max(conntrackPerCore*cores, conntrackMin), conntrackMax)
}
