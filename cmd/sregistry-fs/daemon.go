package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
)

// daemonEnv tells the program that it is the daemon of `mount --daemon`; its
// descriptor 3 is then a pipe to the process that the user started.
const daemonEnv = "SREGISTRY_FS_DAEMON_CHILD"

const daemonPipe = 3

// verdict is the one message on the pipe.
type verdict struct {
	Ready string `json:"ready,omitempty"` // "SPEC on MOUNTPOINT", or empty
	Error string `json:"error,omitempty"`
	Hint  string `json:"hint,omitempty"`
	Code  int    `json:"code,omitempty"`
}

// daemonError is the daemon's failure, told by the process that started it
// with the same words and exit code.
type daemonError struct{ verdict verdict }

func (e *daemonError) Error() string { return e.verdict.Error }

func (a *app) isDaemonChild() bool {
	v, ok := a.getenv(daemonEnv)
	return ok && v == "1"
}

// startDaemon runs the same command again in the background and returns when
// its mount is ready, or with its error. It is a new program and not a
// fork, which a Go process cannot survive.
func (a *app) startDaemon(ctx context.Context) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(exe, a.args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), daemonEnv+"=1")
	cmd.ExtraFiles = []*os.File{w}
	cmd.Stderr = nil // the log has a file, and so has what a crash prints
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	// An interrupt while waiting means the mount, too.
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	var v verdict
	if err := json.NewDecoder(r).Decode(&v); err != nil {
		state, waitErr := cmd.Process.Wait()
		if errors.Is(err, io.EOF) && waitErr == nil {
			return fmt.Errorf("the daemon ended before it was ready: %s", state)
		}
		return fmt.Errorf("the daemon ended before it was ready: %w", err)
	}
	if v.Ready == "" {
		_, _ = cmd.Process.Wait()
		return &daemonError{v}
	}
	if !a.cfg.Quiet {
		fmt.Fprintf(a.stdout, "ready: %s, process %d\n", v.Ready, cmd.Process.Pid)
	}
	return cmd.Process.Release()
}

// adoptPipe takes over the pipe to the process that waits, in the daemon.
func (a *app) adoptPipe() {
	syscall.CloseOnExec(daemonPipe) // fusermount3 must not hold it open
	a.parent = os.NewFile(daemonPipe, "daemon pipe")
}

// tellParent tells the process that waits what is ready, or with err why the
// mount did not come up. Only the first call does something.
func (a *app) tellParent(ctx context.Context, ready string, err error) {
	if a.parent == nil {
		return
	}
	v := verdict{Ready: ready}
	if err != nil {
		v = verdict{Error: err.Error(), Hint: hintOf(err), Code: exitCode(ctx, err)}
	}
	_ = json.NewEncoder(a.parent).Encode(v)
	_ = a.parent.Close()
	a.parent = nil
}
