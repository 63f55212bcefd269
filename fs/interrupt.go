package fs

import (
	"bytes"
	"context"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// deathPoll is how often a waiting request whose process was signalled looks
// whether that process is going to die of it.
const deathPoll = 20 * time.Millisecond

// killable gives a context that ends when the calling process is about to die,
// and not for any other signal: the kernel interrupts a request on every signal,
// the Go runtime's own preemption included, and an EINTR from a page fault
// would be a SIGBUS. limit bounds the wait; 0 means no bound of its own. The caller calls
// the returned function.
func (m *mount) killable(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	waiter, cancel := context.WithCancel(m.life)
	if limit > 0 {
		var stop context.CancelFunc
		waiter, stop = context.WithTimeout(waiter, limit)
		cancelAll := cancel
		cancel = func() { stop(); cancelAll() }
	}
	caller, ok := fuse.FromContext(ctx)
	if !ok || ctx.Done() == nil {
		return waiter, cancel
	}
	pid := int(caller.Pid)
	go func() {
		select {
		case <-waiter.Done():
			return
		case <-ctx.Done():
		}
		tick := time.NewTicker(deathPoll)
		defer tick.Stop()
		for !dying(pid) {
			select {
			case <-waiter.Done():
				return
			case <-tick.C:
			}
		}
		cancel()
	}()
	return waiter, cancel
}

// dying reports whether SIGKILL is pending for a thread, or it is gone. A
// signal whose action is to kill makes the kernel post SIGKILL to every thread
// of the process.
func dying(pid int) bool {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return os.IsNotExist(err)
	}
	const sigkill = 1 << (9 - 1)
	for line := range strings.SplitSeq(string(status), "\n") {
		key, value, _ := strings.Cut(line, ":")
		if key != "SigPnd" && key != "ShdPnd" {
			continue
		}
		mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err == nil && mask&sigkill != 0 {
			return true
		}
	}
	return false
}

// diedBySignal reports whether a thread is exiting because a signal killed
// it: the exit code (field 52 of /proc/PID/stat) of an exiting task has the signal in its low
// seven bits. A killed writer still sends FLUSH on its way out, and what it
// wrote must not be published.
//
// Only a thread that has let go of its memory is asked for its stat: reading
// that of a process in execve(2) waits until the execve is over, which may
// itself be waiting for the answer to this very FLUSH (of a descriptor that is
// closed on exec).
func diedBySignal(pid uint32) bool {
	dir := "/proc/" + strconv.Itoa(int(pid))
	status, err := os.ReadFile(dir + "/status")
	if err != nil || bytes.Contains(status, []byte("\nVmSize:")) {
		return false
	}
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return false
	}
	// The second field is the name in parentheses and may hold anything.
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return false
	}
	fields := bytes.Fields(stat[i+1:])
	const exitCode = 52 - 3 // fields[0] is field 3
	if len(fields) <= exitCode {
		return false
	}
	code, err := strconv.ParseUint(string(fields[exitCode]), 10, 32)
	return err == nil && code&0x7f != 0
}
