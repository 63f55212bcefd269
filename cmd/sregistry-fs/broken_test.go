package main

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sregistry/sregistry-fs/backends/imagefile/imagetest"
	"github.com/sregistry/sregistry-fs/backends/registry/registrytest"
)

// TestBrokenRegistry lets the registry fail in every way at a mount: what is
// known is still listed, what cannot be read is an error and never other bytes,
// and the mount goes on when the registry does.
func TestBrokenRegistry(t *testing.T) {
	s := newSite(t, registrytest.Options{NoLimits: true})
	data := readImage(t, imagetest.Squashfs(t, t.TempDir(), imagetest.Options{PadMB: 2}))
	s.seed("vsoch", "hello", "latest", data)
	s.mount()
	s.run("ls", s.path("vsoch"))
	fail := func(endpoint string, f registrytest.Fault) {
		s.srv.SetFault(func(e string, _ *http.Request) *registrytest.Fault {
			if e == endpoint {
				return &f
			}
			return nil
		})
	}
	for name, f := range map[string]registrytest.Fault{
		"a web page": {Kind: registrytest.Page}, "no end": {Kind: registrytest.Endless}, "no answer": {Kind: registrytest.Reset},
		"half an answer": {Kind: registrytest.Short, At: 40}, "status 502": {Kind: registrytest.Status, Code: 502},
	} {
		fail("collections", f)
		out, err := s.try(s.bin, "refresh", s.mnt)
		if err == nil || !strings.HasPrefix(out, "sregistry-fs: ") || strings.Contains(out, "goroutine") {
			t.Errorf("%s: refresh says %v: %s", name, err, out)
		}
		if got := s.run("ls", s.path("vsoch")); got != "hello:latest.simg\n" {
			t.Errorf("%s: the old listing is gone: %q", name, got)
		}
	}
	s.srv.SetFault(nil)
	s.run(s.bin, "refresh", s.mnt)

	copied := filepath.Join(t.TempDir(), "copy")
	for name, f := range map[string]registrytest.Fault{
		"wrong bytes": {Kind: registrytest.Flip, At: 1_000_000}, "too few": {Kind: registrytest.Fewer}, "too many": {Kind: registrytest.Longer},
		"half": {Kind: registrytest.Short, At: 1_000_000}, "a web page": {Kind: registrytest.Page},
	} {
		fail("download", f)
		out, err := s.try("cp", s.path("vsoch/hello:latest.simg"), copied)
		got, _ := os.ReadFile(copied)
		// A lie that is consistent in itself shows only when the digest of the
		// whole is compared, and a cold reader does not wait for that. What must
		// not be is that such bytes are kept.
		lie := f.Kind == registrytest.Flip || f.Kind == registrytest.Fewer || f.Kind == registrytest.Longer
		if err == nil && !bytes.Equal(got, data) && !lie {
			t.Errorf("%s: cp returned 0 with other bytes", name)
		}
		if err != nil && !strings.Contains(out, "Input/output error") && !strings.Contains(out, "Stale file handle") {
			t.Errorf("%s: %s", name, out)
		}
		s.srv.SetFault(nil)
		// What the registry says now may contradict what it said before: that is
		// one error at most, and then the right bytes.
		s.try("cp", s.path("vsoch/hello:latest.simg"), copied)
		s.same(s.path("vsoch/hello:latest.simg"), data)
		s.umount()
		if err := os.RemoveAll(s.home + "/cache/blobs"); err != nil {
			t.Fatal(err)
		}
		s.mount()
	}
}
