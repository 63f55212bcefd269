package dir

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/sregistry/sregistry-fs/backends"
)

// An error of the operating system keeps its errno, gets a kind where there is
// one, and does not show where the folder lies.
func TestFault(t *testing.T) {
	for cause, want := range map[error]backends.Kind{
		syscall.ENOENT:                         backends.NotFound,
		syscall.ENOTDIR:                        backends.NotFound,
		syscall.ENAMETOOLONG:                   backends.NotFound,
		syscall.EACCES:                         backends.Denied,
		syscall.EPERM:                          backends.Denied,
		syscall.EROFS:                          backends.ReadOnly,
		syscall.EEXIST:                         backends.Exists,
		syscall.ESTALE:                         backends.Stale,
		syscall.EDQUOT:                         backends.Quota,
		syscall.EIO:                            backends.Unavailable,
		syscall.ENOSPC:                         backends.Other, // is itself
		context.Canceled:                       backends.Other, // likewise
		context.DeadlineExceeded:               backends.Timeout,
		errors.New("path escapes from parent"): backends.NotFound,
	} {
		for _, wrapped := range []error{
			&fs.PathError{Op: "openat", Path: "/data/lab", Err: cause},
			&os.LinkError{Op: "renameat", Old: "/data/lab", New: "/data/lab", Err: cause},
		} {
			err := fault("open", backends.Ref{Collection: "lab"}, wrapped)
			if err.Kind != want || !errors.Is(err, cause) {
				t.Errorf("%v: kind %v, want %v", cause, err.Kind, want)
			}
			if strings.Contains(err.Error(), "/data") || err.Op != "open" || err.Ref.Collection != "lab" {
				t.Error(err)
			}
		}
	}
}
