package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sregistry/sregistry-fs/backends"
)

// mountpointError is a mountpoint that cannot be used.
func mountpointError(hint, format string, args ...any) error {
	return &backends.Error{Op: "mount", Kind: backends.Other, Hint: hint, Err: fmt.Errorf(format, args...)}
}

// absMountpoint gives the path under which the kernel knows a mountpoint. It
// does not touch the last component, behind which a dead mount may be.
func absMountpoint(text string) (string, error) {
	path, err := filepath.Abs(text)
	if err != nil {
		return "", err
	}
	return filepath.Join(realPath(filepath.Dir(path)), filepath.Base(path)), nil
}

// checkMountpoint settles where to mount: an empty directory of this user
// that is no link, outside of the directories named in apart. A mount of
// ours whose daemon died is cleared first, with a word in the log.
func checkMountpoint(text string, uid int, apart map[string]string, log *slog.Logger) (string, error) {
	path, err := absMountpoint(text)
	if err != nil {
		return "", err
	}
	if err := clearDead(path, log); err != nil {
		return "", err
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", mountpointError("run: mkdir -p "+path, "mountpoint %s does not exist", path)
	case err != nil:
		return "", mountpointError("", "mountpoint: %w", err)
	case info.Mode()&os.ModeSymlink != 0:
		return "", mountpointError("name the directory itself: "+realPath(path), "mountpoint %s is a symbolic link", path)
	case !info.IsDir():
		return "", mountpointError("", "mountpoint %s is not a directory", path)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != uid && st.Uid != 0 {
		return "", mountpointError("use a directory of your own", "mountpoint %s belongs to user %d", path, st.Uid)
	}
	for what, dir := range apart {
		if dir != "" && overlap(path, dir) {
			return "", mountpointError("choose another mountpoint", "mountpoint %s and %s %s overlap: the mount would wait for itself", path, what, dir)
		}
	}
	d, err := os.Open(path)
	if err != nil {
		return "", mountpointError("", "mountpoint: %w", err)
	}
	defer d.Close()
	if names, err := d.Readdirnames(1); len(names) > 0 {
		return "", mountpointError("choose an empty directory", "mountpoint %s is not empty", path)
	} else if err != nil && !errors.Is(err, io.EOF) {
		return "", mountpointError("", "mountpoint: %w", err)
	}
	return path, nil
}

// clearDead unmounts what is left of our mounts at path whose daemons are gone, and
// refuses a path where a daemon lives.
func clearDead(path string, log *slog.Logger) error {
	for range 8 {
		m, ok := mountAt(path)
		if !ok || m.fsType != fuseType {
			return nil
		}
		if !isDead(path) {
			return mountpointError("run: sregistry-fs umount "+path, "%s is mounted already (%s)", path, m.source)
		}
		if err := detach(path); err != nil {
			return mountpointError("run: sregistry-fs umount --force "+path, "a dead mount is at %s: %w", path, err)
		}
		log.Warn("cleared what a mount left whose daemon had died", "mountpoint", path)
	}
	return nil
}

// isDead reports whether the mount at path has lost its daemon. One that does not
// answer within two seconds counts as alive. It asks with statfs, which the
// kernel never answers from memory as it does stat.
func isDead(path string) bool {
	answer := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		answer <- unix.Statfs(path, &st)
	}()
	select {
	case err := <-answer:
		return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)
	case <-time.After(2 * time.Second):
		return false
	}
}

// detach takes a mount out of the tree even while it is in use.
func detach(path string) error { return unmount(path, true) }

// unmount asks the kernel, as root itself and else through fusermount3.
func unmount(path string, lazy bool) error {
	if os.Geteuid() == 0 {
		flags := unix.UMOUNT_NOFOLLOW
		if lazy {
			flags |= unix.MNT_DETACH
		}
		return unix.Unmount(path, flags)
	}
	args := []string{"-u", "--", path}
	if lazy {
		args = []string{"-u", "-z", "--", path}
	}
	out, err := exec.Command("fusermount3", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// abort cuts the connection between the kernel and a daemon that hangs, so
// that every process waiting for it gets an error.
func abort(m mountEntry) error {
	return os.WriteFile(fmt.Sprintf("/sys/fs/fuse/connections/%d/abort", m.minor), []byte("1"), 0)
}
