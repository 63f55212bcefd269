package fs_test

import (
	"bytes"
	"errors"
	"os"
	"syscall"
	"testing"

	"github.com/sregistry/sregistry-fs/backends/mem"
)

// TestMovedTag re-pushes a tag behind the mount's back while its listing is
// fresh: an open gives the new image, and handles from before keep the old one
// as far as it is cached, never a mix.
func TestMovedTag(t *testing.T) {
	f := newFixture(t, mem.Options{})
	before, after := random(3_000_000), random(2_000_000)
	f.put("vsoch/hello:latest", before)
	f.put("vsoch/cold:latest", before)
	path, cold := f.path("vsoch/hello:latest.simg"), f.path("vsoch/cold:latest.simg")
	f.run("ls", "-l", f.path("vsoch"))

	f.put("vsoch/hello:latest", after)
	sameFile(t, path, after)

	open, err := os.Open(cold)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	head := make([]byte, 1000)
	if _, err := open.ReadAt(head, 0); err != nil || !bytes.Equal(head, before[:1000]) {
		t.Fatalf("first read: %v", err)
	}
	f.put("vsoch/cold:latest", after)
	tail := make([]byte, 1000)
	switch _, err := open.ReadAt(tail, int64(len(before)-1000)); {
	case err == nil && !bytes.Equal(tail, before[len(before)-1000:]):
		t.Error("the handle gives other bytes than those of the image it opened")
	case err != nil && !errors.Is(err, syscall.ESTALE):
		t.Errorf("bytes that are gone: %v, want ESTALE", err)
	}
	if _, err := open.ReadAt(head, 0); err != nil || !bytes.Equal(head, before[:1000]) {
		t.Errorf("bytes that were read before: %v", err)
	}
}
