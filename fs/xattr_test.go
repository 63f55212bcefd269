package fs_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sregistry/sregistry-fs/backends/backendtest"
	"github.com/sregistry/sregistry-fs/backends/imagefile/imagetest"
	"github.com/sregistry/sregistry-fs/backends/mem"
)

func attribute(t *testing.T, path, name string) (string, error) {
	t.Helper()
	buf := make([]byte, 70<<10)
	n, err := unix.Getxattr(path, "user.sregistry."+name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func TestAttributes(t *testing.T) {
	inspect := imagetest.DefaultInspect()
	for kind, build := range map[string]func(testing.TB, string, imagetest.Options) string{"sif": imagetest.SIF, "squashfs": imagetest.Squashfs} {
		t.Run(kind, func(t *testing.T) {
			f := newFixture(t, mem.Options{})
			data, err := os.ReadFile(build(t, t.TempDir(), imagetest.Options{PadMB: 8}))
			if err != nil {
				t.Fatal(err)
			}
			f.put("vsoch/hello:latest", data)
			path := f.path("vsoch/hello:latest.simg")
			dump := f.run("getfattr", "-d", "-m", "-", path)
			want := map[string]string{
				"backend": "mem", "collection": "vsoch", "image": "hello", "tag": "latest", "cached": "no", "inspect": "done",
				"runscript": inspect.Runscript, "help": inspect.Help, "digest": "sha256:" + digestOf(data),
			}
			for name, value := range inspect.Labels {
				want["label."+name] = value
			}
			for name, value := range want {
				if !strings.Contains(dump, "user.sregistry."+name+"=") {
					t.Errorf("getfattr -d lacks %s:\n%s", name, dump)
				}
				if got, err := attribute(t, path, name); err != nil || strings.TrimSpace(got) != strings.TrimSpace(value) {
					t.Errorf("%s = %q %v, want %q", name, got, err, value)
				}
			}
			if n := f.count.BytesRead(); n > int64(len(data))/2 {
				t.Errorf("reading attributes downloaded %d of %d bytes", n, len(data))
			}
			if n := f.count.Calls(backendtest.Open); n != 0 {
				t.Errorf("reading attributes opened the whole image %d times", n)
			}
			var record map[string]any
			text, err := attribute(t, path, "record")
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal([]byte(text), &record); err != nil || record["collection"] != "vsoch" || record["type"] != "container" {
				t.Errorf("record %v: %s", err, text)
			}
			f.count.Reset()
			f.remount()
			f.run("getfattr", "-d", "-m", "-", path)
			if n := f.count.Calls(backendtest.OpenRange, backendtest.Open); n != 0 {
				t.Errorf("inspect data is not kept: %v", f.count)
			}
		})
	}
}

func TestAttributesNeedPull(t *testing.T) {
	f := newFixture(t, mem.Options{NoRanges: true})
	data := image(t, imagetest.Options{})
	f.put("vsoch/hello:latest", data)
	path := f.path("vsoch/hello:latest.simg")
	if got, err := attribute(t, path, "inspect"); err != nil || got != "needs-pull" {
		t.Errorf("inspect = %q %v", got, err)
	}
	if n := f.count.Calls(backendtest.Open); n != 0 {
		t.Error("an attribute cost a download")
	}
	sameFile(t, path, data)
	waitFor(t, func() bool { got, _ := attribute(t, path, "inspect"); return got == "done" })
}

func TestAttributesAreReadOnly(t *testing.T) {
	f := newFixture(t, mem.Options{})
	data := image(t, imagetest.Options{})
	f.put("vsoch/hello:latest", data)
	path := f.path("vsoch/hello:latest.simg")
	for name, want := range map[string]error{
		"user.sregistry.tag": syscall.EPERM, "user.sregistry.label.x": syscall.EPERM,
		"user.other": syscall.EOPNOTSUPP, "user.sregistry.share": syscall.EOPNOTSUPP,
	} {
		if err := unix.Setxattr(path, name, []byte("other"), 0); !errors.Is(err, want) {
			t.Errorf("setting %s: %v, want %v", name, err, want)
		}
	}
	if err := unix.Setxattr(path, "user.sregistry.tag", []byte("latest"), 0); err != nil {
		t.Errorf("setting an attribute to its own value: %v", err)
	}
	if err := unix.Setxattr(path, "user.sregistry.pin", []byte("1"), 0); err != nil {
		t.Error(err)
	}
	if got, err := attribute(t, path, "pin"); err != nil || got != "1" {
		t.Errorf("pin = %q %v", got, err)
	}
	if err := unix.Removexattr(path, "user.sregistry.pin"); err != nil {
		t.Error(err)
	}
	if _, err := attribute(t, path, "pin"); !errors.Is(err, syscall.ENODATA) {
		t.Errorf("pin after its removal: %v", err)
	}
	f.run("mkdir", f.path("copy"))
	f.run("cp", "-a", path, f.path("copy/hello:latest.simg"))
	if f.held("copy/hello:latest") == nil {
		t.Error("cp -a did not push")
	}
}

// rsync -X wants to remove what the source does not have, from directories,
// from files being written and, the second time, from images.
func TestRsyncWithAttributes(t *testing.T) {
	need(t, "rsync")
	f := newFixture(t, mem.Options{})
	data := image(t, imagetest.Options{})
	f.put("from/hello:latest", data)
	local := t.TempDir()
	if err := os.WriteFile(filepath.Join(local, "plain:1.simg"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	f.run("mkdir", f.path("to"))
	for range 2 {
		f.run("rsync", "-aX", local+"/", f.path("to"))
	}
	f.run("rsync", "-aX", f.path("from")+"/", f.path("to"))
	f.run("cp", "-r", "--preserve=xattr", f.path("from"), f.path("copy"))
	for _, name := range []string{"to/plain:1", "to/hello:latest", "copy/hello:latest"} {
		if !bytes.Equal(f.held(name), data) {
			t.Errorf("%s was not pushed", name)
		}
	}
	if got, err := attribute(t, f.path("to/plain:1.simg"), "collection"); err != nil || got != "to" {
		t.Errorf("collection = %q, %v", got, err)
	}
	if got, err := attribute(t, f.path("copy"), "collection"); err != nil || got != "copy" {
		t.Errorf("collection of the directory = %q, %v", got, err)
	}
}
