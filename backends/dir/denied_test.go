package dir_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sregistry/sregistry-fs/backends"
)

// asOrdinary runs f without root's right to read everything.
func asOrdinary(f func()) {
	if os.Geteuid() != 0 {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		_, _ = unix.SetfsuidRetUid(65534)
		f()
	}()
	<-done
}

// What may not be read is an empty collection in the whole, and says so when
// it is asked for; the rest is not disturbed.
func TestFoldersThatMayNotBeRead(t *testing.T) {
	path, set := folder(t, "lab/a:1.simg", "closed/b:1.simg", "lab/c:1.simg")
	closed := filepath.Join(path, "closed")
	must(t, os.Chmod(closed, 0))
	must(t, os.Chmod(filepath.Join(path, "lab/c:1.simg"), 0o000))
	t.Cleanup(func() { _ = os.Chmod(closed, 0o755) })
	must(t, os.Chmod(filepath.Dir(path), 0o755)) // of the test, open to root only
	ctx := t.Context()
	asOrdinary(func() {
		var all []string
		for rec, err := range set.Tree.Tree(ctx) {
			if err != nil {
				t.Error(err)
			}
			all = append(all, rec.Ref.String())
		}
		equal(t, "the registry", all, []string{"closed", "lab", "lab/a:1", "lab/c:1"})
		for _, err := range set.Images(ctx, "closed") {
			if !errors.Is(err, backends.Denied) {
				t.Errorf("Images: %v", err)
			}
		}
		if _, err := set.Stat(ctx, backends.Ref{Collection: "closed", Image: "b", Tag: "1"}); !errors.Is(err, backends.Denied) {
			t.Errorf("Stat: %v", err)
		}
		rec, err := set.Stat(ctx, backends.Ref{Collection: "lab", Image: "c", Tag: "1"})
		if err != nil {
			t.Error(err)
		}
		if _, err := set.Open(ctx, rec); !errors.Is(err, backends.Denied) {
			t.Errorf("Open: %v", err)
		}
		// A folder that may not be written is told as that.
		if _, err := set.Pusher.Push(ctx, backends.Ref{Collection: "closed", Image: "x", Tag: "1"}, newSource("x"), nil); !errors.Is(err, backends.Denied) {
			t.Errorf("Push: %v", err)
		}
	})
}
