package fs_test

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/sregistry/sregistry-fs/backends/backendtest"
	"github.com/sregistry/sregistry-fs/backends/imagefile/imagetest"
	"github.com/sregistry/sregistry-fs/backends/mem"
)

// TestReadBeforeTheWholeImage: a registry that sends only whole images stops
// after 2 MB; what it sent by then can be read.
func TestReadBeforeTheWholeImage(t *testing.T) {
	f := newFixture(t, mem.Options{NoRanges: true})
	data := random(4_000_000)
	f.put("vsoch/hello:latest", data)
	f.unmount()
	gate := make(chan struct{})
	f.set = backendtest.Faulty(t, f.set, backendtest.Fault{Method: backendtest.Open, After: 2_000_000, Block: true, Gate: gate})
	f.mount()
	open, err := os.Open(f.path("vsoch/hello:latest.simg"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	got := make([]byte, 1_000_000)
	if _, err := open.ReadAt(got, 0); err != nil || !bytes.Equal(got, data[:len(got)]) {
		t.Fatalf("before the rest has arrived: %v", err)
	}
	close(gate)
	sameFile(t, f.path("vsoch/hello:latest.simg"), data)
	if n := f.count.Calls(backendtest.Open); n != 1 {
		t.Errorf("%d downloads", n)
	}
}

// TestReopenAfterPublish opens a file that was just pushed by its descriptor and
// not by its name: it is the pushed image, not an empty file.
func TestReopenAfterPublish(t *testing.T) {
	f := newFixture(t, mem.Options{})
	f.put("vsoch/other:1", random(10))
	data := image(t, imagetest.Options{})
	out, err := os.Create(f.path("vsoch/new:1.simg"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Write(data); err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/proc/self/fd/%d", out.Fd())
	f.run("sh", "-c", `exec 3<"$1"; exec 3<&-`, "sh", f.path("vsoch/new:1.simg"))
	again, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		again.Close()
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(f.held("vsoch/new:1"), data) {
		t.Fatal("not pushed whole")
	}
	sameFile(t, f.path("vsoch/new:1.simg"), data)
}

// TestNothingInherited: a child process gets no descriptor of the mount's
// connection.
func TestNothingInherited(t *testing.T) {
	f := newFixture(t, mem.Options{})
	if got := f.run("ls", "-l", "/proc/self/fd"); strings.Contains(got, "/dev/fuse") {
		t.Errorf("a child inherits the connection:\n%s", got)
	}
}
