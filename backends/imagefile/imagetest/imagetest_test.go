package imagetest_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sregistry/sregistry-fs/backends/imagefile/imagetest"
)

// TestProgramRuns checks with an independent reader that an image holds what
// the options say, and that its program is one.
func TestProgramRuns(t *testing.T) {
	unsquashfs, err := exec.LookPath("unsquashfs")
	if err != nil {
		t.Skipf("needs unsquashfs: %v", err)
	}
	img := imagetest.Squashfs(t, t.TempDir(), imagetest.Options{Program: true, PadMB: 2, Files: map[string]string{"opt/x": "y"}})
	root := filepath.Join(t.TempDir(), "root")
	if out, err := exec.Command(unsquashfs, "-no-xattrs", "-d", root, img).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if b, err := os.ReadFile(filepath.Join(root, "opt/x")); err != nil || string(b) != "y" {
		t.Errorf("opt/x: %q, %v", b, err)
	}
	out, err := exec.Command(filepath.Join(root, "bin/hello")).Output()
	if err != nil || !strings.HasPrefix(string(out), "hello from the image\n") {
		t.Errorf("hello: %q, %v", out, err)
	}
	if info, err := os.Stat(img); err != nil || info.Size() < 2<<20 {
		t.Errorf("the filler was compressed away: %v, %v", info.Size(), err)
	}
}

// TestReproducible: the same options give the same bytes, so that tests can
// compare digests.
func TestReproducible(t *testing.T) {
	build := func() []byte {
		b, err := os.ReadFile(imagetest.SIF(t, t.TempDir(), imagetest.Options{}))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if !bytes.Equal(build(), build()) {
		t.Error("two builds of one image differ")
	}
}
