package fs_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sregistry/sregistry-fs/backends/imagefile/imagetest"
	"github.com/sregistry/sregistry-fs/backends/mem"
	"github.com/sregistry/sregistry-fs/fs"
)

// offsetOf finds where the squashfs begins: what runtimes read from the headers.
func offsetOf(t *testing.T, data []byte) int {
	t.Helper()
	i := bytes.Index(data, []byte("hsqs"))
	if i < 0 {
		t.Fatal("no squashfs in the image")
	}
	return i
}

// TestSquashfuse runs a static program out of mounted images, as a runtime
// without privileges does.
func TestSquashfuse(t *testing.T) {
	squashfuse := need(t, "squashfuse")
	f := newFixture(t, mem.Options{})
	for kind, path := range map[string]string{
		"sif":    imagetest.SIF(t, t.TempDir(), imagetest.Options{Program: true, PadMB: 4}),
		"zstd":   imagetest.SIF(t, t.TempDir(), imagetest.Options{Program: true, Compression: "zstd"}),
		"simg":   imagetest.Squashfs(t, t.TempDir(), imagetest.Options{Program: true}),
		"launch": imagetest.Squashfs(t, t.TempDir(), imagetest.Options{Program: true, LaunchLine: true}),
	} {
		t.Run(kind, func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			f.put("vsoch/"+kind+":latest", data)
			if err := f.cache.Catalog.Refresh(t.Context(), ""); err != nil {
				t.Fatal(err)
			}
			inside := t.TempDir()
			f.run(squashfuse, "-o", fmt.Sprintf("offset=%d", offsetOf(t, data)), f.path("vsoch/"+kind+":latest.simg"), inside)
			defer func() {
				if os.Geteuid() == 0 {
					f.run("umount", inside)
				} else {
					f.run("fusermount3", "-u", inside)
				}
			}()
			// Not by an exec of this process: until that ends, one of the threads that
			// have to answer the reads of the program stands still.
			if got := f.run("env", filepath.Join(inside, "bin", "hello")); !strings.Contains(got, "hello") {
				t.Errorf("the program printed %q", got)
			}
			got, err := os.ReadFile(filepath.Join(inside, "etc", "os-release"))
			if err != nil || string(got) != imagetest.OSRelease {
				t.Errorf("os-release: %q %v", got, err)
			}
		})
	}
}

// TestLoopMount lets the kernel itself mount images on the mount, as a runtime with
// privileges does.
func TestLoopMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a loop mount needs root")
	}
	f := newFixture(t, mem.Options{})
	images := map[string]string{
		"squashfs": imagetest.SIF(t, t.TempDir(), imagetest.Options{Program: true, PadMB: 4}),
		"ext3":     imagetest.Ext3(t, t.TempDir(), imagetest.Options{Program: true}),
	}
	for kind, path := range images {
		t.Run(kind, func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			offset := 0
			if kind == "squashfs" {
				offset = offsetOf(t, data)
			}
			f.put("vsoch/"+kind+":latest", data)
			if err := f.cache.Catalog.Refresh(t.Context(), ""); err != nil {
				t.Fatal(err)
			}
			for _, state := range []string{"cold", "warm"} {
				inside := t.TempDir()
				options := fmt.Sprintf("loop,ro,offset=%d", offset)
				if kind == "ext3" {
					options += ",noload"
				}
				f.run("mount", "-t", kind, "-o", options, f.path("vsoch/"+kind+":latest.simg"), inside)
				got, err := f.try("env", filepath.Join(inside, "bin", "hello"))
				f.run("umount", inside)
				if err != nil || !strings.Contains(got, "hello") {
					t.Errorf("%s: the program printed %q, %v", state, got, err)
				}
				sameFile(t, f.path("vsoch/"+kind+":latest.simg"), data)
			}
		})
	}
}

// asUser runs a command as an ordinary user; only root can.
func asUser(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestOtherUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("becoming another user needs root")
	}
	data := random(100_000)
	for _, tt := range []struct {
		name   string
		change func(*fs.Options)
		ok     bool
	}{
		{"default", func(*fs.Options) {}, false},
		{"allow-other", func(o *fs.Options) { o.AllowOther = true }, true},
		{"allow-other and a private mode", func(o *fs.Options) { o.AllowOther = true; o.FileMode = 0o600 }, false},
		{"allow-root", func(o *fs.Options) { o.AllowRoot = true }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, mem.Options{}, tt.change)
			f.put("vsoch/hello:latest", data)
			openUp(t, f.dir)
			for range 2 { // cold, then warm
				out, err := asUser(t, "cat", f.path("vsoch/hello:latest.simg"))
				if ok := err == nil && len(out) == len(data); ok != tt.ok {
					t.Errorf("another user reads: %v (%v), want %v", ok, err, tt.ok)
				}
				sameFile(t, f.path("vsoch/hello:latest.simg"), data)
			}
		})
	}
}

// openUp lets other users reach dir, whose parents the test made private.
func openUp(t *testing.T, dir string) {
	t.Helper()
	for parent := filepath.Dir(dir); strings.HasPrefix(parent, os.TempDir()+"/"); parent = filepath.Dir(parent) {
		if err := os.Chmod(parent, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}
