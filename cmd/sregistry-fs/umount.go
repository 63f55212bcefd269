package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sregistry/sregistry-fs/backends"
)

// exitWait bounds how long umount waits for the daemon to end after the mount
// is gone.
const exitWait = 15 * time.Second

func (a *app) umountCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "umount MOUNTPOINT",
		Short: "Take a mount down",
		Long: `Take a mount down: files being written have the mount's --stop-timeout to
finish, and what could not be pushed stays staged. It returns when the daemon has
ended. With --force, waiting processes get an error and the mount is detached now.

` + exitCodes,
		Example: `  sregistry-fs umount /mnt/images
  sregistry-fs umount --force /mnt/images`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := ourMount(args[0])
			if err != nil {
				return err
			}
			if force {
				return a.forceUmount(cmd.Context(), m)
			}
			return a.umount(cmd.Context(), m)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "do not wait for anything")
	return cmd
}

// ourMount finds the mount at exactly the path that text names.
func ourMount(text string) (mountEntry, error) {
	path, err := absMountpoint(text)
	if err != nil {
		return mountEntry{}, err
	}
	for _, p := range []string{path, realPathAlive(path)} {
		if m, ok := mountAt(p); ok && m.fsType == fuseType {
			return m, nil
		}
	}
	return mountEntry{}, backends.Errorf("umount", backends.Ref{}, backends.NotFound, "nothing of sregistry-fs is mounted at %s", path)
}

// realPathAlive follows a last component that is a link.
func realPathAlive(path string) string {
	if to, err := os.Readlink(path); err == nil {
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		if abs, err := absMountpoint(to); err == nil {
			return abs
		}
	}
	return path
}

func (a *app) umount(ctx context.Context, m mountEntry) error {
	dirs := socketDirs(a.getenv, os.Geteuid())
	var st status
	err := ask(ctx, dirs, m.point, http.MethodGet, "/status", nil, &st)
	if err == nil {
		err = ask(ctx, dirs, m.point, http.MethodPost, "/umount", nil, nil)
		waitExit(ctx, st.PID)
		return err
	}
	if !errors.Is(err, errNoControl) {
		return err
	}
	if err := unmount(m.point, false); err != nil {
		e := &backends.Error{Op: "umount", Kind: backends.KindOf(err), Err: fmt.Errorf("%s: %w", m.point, err)}
		if errors.Is(err, unix.EBUSY) || e.Kind == backends.Other {
			e.Hint = "if it is in use or its daemon is dead: sregistry-fs umount --force " + m.point
		}
		return e
	}
	return nil
}

func (a *app) forceUmount(ctx context.Context, m mountEntry) error {
	dirs := socketDirs(a.getenv, os.Geteuid())
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var st status
	if ask(ctx, dirs, m.point, http.MethodGet, "/status", nil, &st) == nil &&
		ask(ctx, dirs, m.point, http.MethodPost, "/umount", url.Values{"force": {"true"}}, nil) == nil {
		waitExit(ctx, st.PID)
		return nil
	}
	// The daemon does not answer: cut it off from outside.
	abortErr := abort(m)
	if err := detach(m.point); err != nil {
		if now, ok := mountAt(m.point); !ok || now.minor != m.minor {
			return nil // the abort made the daemon unmount
		}
		return &backends.Error{Op: "umount", Kind: backends.KindOf(err), Err: fmt.Errorf("%s: %w", m.point, errors.Join(err, abortErr))}
	}
	return nil
}

// waitExit waits for a process to end, so that the next mount finds its index free.
func waitExit(ctx context.Context, pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // it has ended
	}
	defer unix.Close(fd)
	for deadline := time.Now().Add(exitWait); ctx.Err() == nil && time.Now().Before(deadline); {
		n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if n > 0 {
			return
		}
	}
}
