package fs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/sregistry/sregistry-fs/backends"
)

// TestErrno covers every kind, so that a new one cannot be forgotten.
func TestErrno(t *testing.T) {
	for _, kind := range backends.Kinds() {
		want, ok := errnoOfKind[kind]
		if !ok {
			t.Errorf("kind %q has no errno", kind)
		}
		err := fmt.Errorf("outer: %w", backends.Errorf("open", backends.Ref{}, kind, "cause"))
		if got := Errno(err); got != want {
			t.Errorf("Errno(%v) = %v, want %v", err, got, want)
		}
		if want == syscall.EAGAIN {
			t.Errorf("kind %q is EAGAIN, which breaks readers of regular files", kind)
		}
	}
	for _, tt := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{context.Canceled, syscall.EINTR},
		{context.DeadlineExceeded, syscall.ETIMEDOUT},
		{&os.PathError{Op: "write", Err: syscall.ENOSPC}, syscall.ENOSPC},
		{backends.Errorf("push", backends.Ref{}, backends.Other, "stage: %w", syscall.EDQUOT), syscall.EDQUOT},
		{syscall.EAGAIN, syscall.EIO},
		{errors.New("something"), syscall.EIO},
	} {
		if got := Errno(tt.err); got != tt.want {
			t.Errorf("Errno(%v) = %v, want %v", tt.err, got, tt.want)
		}
	}
}
