package fs

import (
	"context"
	"errors"
	"log/slog"
	"syscall"

	"github.com/sregistry/sregistry-fs/backends"
)

// errnoOfKind is the only table from error kinds to errnos. Never EAGAIN: it
// breaks readers of regular files.
var errnoOfKind = map[backends.Kind]syscall.Errno{
	backends.Other:       syscall.EIO,
	backends.NotFound:    syscall.ENOENT,
	backends.Exists:      syscall.EEXIST,
	backends.Denied:      syscall.EACCES,
	backends.Frozen:      syscall.EPERM,
	backends.ReadOnly:    syscall.EROFS,
	backends.Stale:       syscall.ESTALE,
	backends.Unsupported: syscall.EOPNOTSUPP,
	backends.Invalid:     syscall.EINVAL,
	backends.Throttled:   syscall.EBUSY,
	backends.Quota:       syscall.EDQUOT,
	backends.Corrupt:     syscall.EIO,
	backends.Unavailable: syscall.EIO,
	backends.Timeout:     syscall.ETIMEDOUT,
}

// Errno gives the errno that a process sees for err; 0 for nil. A local
// errno without a kind passes as itself (ENOSPC survives); a cancelled wait is EINTR.
func Errno(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	if errors.Is(err, context.Canceled) {
		return syscall.EINTR
	}
	if kind := backends.KindOf(err); kind != backends.Other {
		return errnoOfKind[kind]
	}
	var errno syscall.Errno
	if errors.As(err, &errno) && errno != 0 && errno != syscall.EAGAIN {
		return errno
	}
	return syscall.EIO
}

// fail turns err into an errno and writes the one log line of this failure.
// An absent name, a refusal that the process was told in full by its errno,
// and an interrupted wait are not worth more than debug.
func (m *mount) fail(op string, ref backends.Ref, err error) syscall.Errno {
	errno := Errno(err)
	level := slog.LevelWarn
	switch errno {
	case 0:
		return 0
	case syscall.ENOENT, syscall.EINTR, syscall.ENODATA:
		level = slog.LevelDebug
	}
	attrs := []any{"op", op, "image", ref.String(), "errno", errno.Error(), "error", err}
	if hint := backends.HintOf(err); hint != "" {
		attrs = append(attrs, "hint", hint)
	}
	m.log.Log(context.Background(), level, "request failed", attrs...)
	return errno
}
