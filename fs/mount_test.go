package fs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/backendtest"
	"github.com/sregistry/sregistry-fs/backends/imagefile/imagetest"
	"github.com/sregistry/sregistry-fs/backends/mem"
	"github.com/sregistry/sregistry-fs/fs"
)

func TestListing(t *testing.T) {
	f := newFixture(t, mem.Options{})
	data := random(300_000)
	f.put("vsoch/hello:latest", data)
	f.put("vsoch/hello:1.0", data)
	f.put("a/b/deep:x+y", data)
	f.run("find", f.dir)
	f.count.Reset()

	got := f.run("find", f.dir, "-printf", "%P %y %s\n")
	for _, want := range []string{
		"vsoch d", "vsoch/hello:latest.simg f 300000", "vsoch/hello:1.0.simg f 300000",
		"a d", "a/b d", "a/b/deep:x+y.simg f 300000",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("find lacks %q:\n%s", want, got)
		}
	}
	f.run("ls", "-lR", f.dir)
	f.run("stat", f.path("vsoch/hello:1.0.simg"))
	if n := f.count.Calls(); n != 0 {
		t.Errorf("listing and stat of a fresh listing cost %d calls: %v", n, f.count)
	}
}

func TestNames(t *testing.T) {
	f := newFixture(t, mem.Options{})
	data := random(10_000)
	f.put("vsoch/hello:1.2", data)
	f.put("vsoch/hello:latest", data)
	for _, name := range []string{"hello:1.2.simg", "hello:1.2.sif", "hello:1.2.img", "hello:1.2", "hello.simg", "hello.sif", "hello.img"} {
		sameFile(t, f.path("vsoch/"+name), data)
	}
	rec, err := f.set.Stat(t.Context(), backends.Ref{Collection: "vsoch", Image: "hello", Tag: "1.2"})
	if err != nil {
		t.Fatal(err)
	}
	sameFile(t, f.path("vsoch/hello:1.2@"+rec.Version+".simg"), data)
	sameFile(t, f.path("vsoch/hello:1.2@"+rec.Digest.Hex+".simg"), data)
	for _, name := range []string{"hello", "other:1.simg", "hello:1.2@nonsense.simg", ".hello:1.2.simg", "hello:1.2.simg.part", "desktop.ini"} {
		if _, err := os.Stat(f.path("vsoch/" + name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("stat %s: %v, want not found", name, err)
		}
	}
}

func TestColdAndWarmRead(t *testing.T) {
	for _, o := range []mem.Options{{}, {NoRanges: true}, {NoRanges: true, NoSize: true}, {Sparse: true}} {
		t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
			f := newFixture(t, o)
			data := random(5_000_001)
			f.put("vsoch/hello:latest", data)
			path := f.path("vsoch/hello:latest.simg")
			sameFile(t, path, data)
			f.count.Reset()
			sameFile(t, path, data)
			f.run("cat", path)
			f.run("stat", path)
			if n := f.count.Calls(); n != 0 {
				t.Errorf("warm reads cost %d calls: %v", n, f.count)
			}
			f.remount()
			f.count.Reset()
			sameFile(t, path, data)
			if n := f.count.Calls(); n != 0 {
				t.Errorf("a warm read after a remount costs %d calls: %v", n, f.count)
			}
		})
	}
}

// TestNoSilentShortCopy: sizes that nobody knows before the first open.
func TestNoSilentShortCopy(t *testing.T) {
	tools := map[string]func(f *fixture, from, to string){
		"cp":    func(f *fixture, from, to string) { f.run("cp", from, to) },
		"cp -a": func(f *fixture, from, to string) { f.run("cp", "-a", from, to) },
		"cat":   func(f *fixture, from, to string) { f.run("sh", "-c", `cat "$1" >"$2"`, "sh", from, to) },
		"dd":    func(f *fixture, from, to string) { f.run("dd", "bs=100k", "if="+from, "of="+to) },
		"rsync": func(f *fixture, from, to string) { f.run("rsync", "-a", from, to) },
		"tar": func(f *fixture, from, to string) {
			f.run("sh", "-c", `tar -cf - -C "${1%/*}" "${1##*/}" | tar -xOf - >"$2"`, "sh", from, to)
		},
		"python": func(f *fixture, from, to string) {
			f.run("python3", "-c", "import shutil,sys; shutil.copyfile(*sys.argv[1:])", from, to)
		},
		"mmap": func(f *fixture, from, to string) {
			f.run("python3", "-c", "import mmap,sys,os\nf=open(sys.argv[1],'rb')\nm=mmap.mmap(f.fileno(),os.fstat(f.fileno()).st_size,prot=mmap.PROT_READ)\nopen(sys.argv[2],'wb').write(m)", from, to)
		},
	}
	for _, mode := range []os.FileMode{0o444, 0o644} {
		for name, copyFile := range tools {
			t.Run(fmt.Sprintf("%s %o", name, mode), func(t *testing.T) {
				t.Parallel()
				f := newFixture(t, mem.Options{NoRanges: true, NoSize: true}, func(o *fs.Options) { o.FileMode = mode })
				data := random(700_003)
				f.put("vsoch/hello:latest", data)
				from, to := f.path("vsoch/hello:latest.simg"), filepath.Join(t.TempDir(), "copy")
				info, err := os.Stat(from)
				if err != nil || info.Size() != 1 || info.Sys().(*syscall.Stat_t).Blocks != 0 {
					t.Fatalf("a size that is not known is shown as 1 with no blocks, got %v %v", info, err)
				}
				copyFile(f, from, to)
				sameFile(t, to, data)
			})
		}
	}
}

func TestPush(t *testing.T) {
	f := newFixture(t, mem.Options{})
	f.put("vsoch/other:1", random(10))
	for _, kind := range []string{"sif", "simg", "launch", "ext3"} {
		t.Run(kind, func(t *testing.T) {
			var src string
			switch kind {
			case "sif":
				src = imagetest.SIF(t, t.TempDir(), imagetest.Options{PadMB: 3})
			case "simg":
				src = imagetest.Squashfs(t, t.TempDir(), imagetest.Options{PadMB: 3})
			case "launch":
				src = imagetest.Squashfs(t, t.TempDir(), imagetest.Options{LaunchLine: true})
			case "ext3":
				src = imagetest.Ext3(t, t.TempDir(), imagetest.Options{})
			}
			want, err := os.ReadFile(src)
			if err != nil {
				t.Fatal(err)
			}
			f.run("cp", src, f.path("vsoch/"+kind+":1.simg"))
			if !bytes.Equal(f.held("vsoch/"+kind+":1"), want) {
				t.Fatal("cp returned 0 and the registry has not the image")
			}
			f.count.Reset()
			sameFile(t, f.path("vsoch/"+kind+":1.simg"), want)
			if n := f.count.BytesRead(); n != 0 {
				t.Errorf("reading back what was pushed downloaded %d bytes", n)
			}
			if got := f.run("ls", f.path("vsoch")); !strings.Contains(got, kind+":1.simg") {
				t.Errorf("not listed at once:\n%s", got)
			}
		})
	}
	t.Run("alias", func(t *testing.T) {
		src := imagetest.Squashfs(t, t.TempDir(), imagetest.Options{Name: "tool.sif"})
		want, _ := os.ReadFile(src)
		f.run("cp", src, f.path("vsoch")+"/")
		if !bytes.Equal(f.held("vsoch/tool:latest"), want) {
			t.Fatal("cp tool.sif did not push vsoch/tool:latest")
		}
		sameFile(t, f.path("vsoch/tool.sif"), want)
	})
	t.Run("new collection", func(t *testing.T) {
		src := imagetest.Squashfs(t, t.TempDir(), imagetest.Options{})
		f.run("mkdir", "-p", f.path("new/deep"))
		f.run("cp", src, f.path("new/deep/x:1.simg"))
		if f.held("new/deep/x:1") == nil {
			t.Fatal("not pushed")
		}
	})
}

func TestPushFails(t *testing.T) {
	refused := backends.Errorf("push", backends.Ref{}, backends.Denied, "no")
	f := newFixture(t, mem.Options{})
	f.put("vsoch/hello:latest", random(10))
	old := f.held("vsoch/hello:latest")
	f.unmount()
	f.set = backendtest.Faulty(t, f.set, backendtest.Fault{Method: backendtest.Push, Err: refused})
	f.mount()
	src := imagetest.Squashfs(t, t.TempDir(), imagetest.Options{})
	out, err := f.try("cp", src, f.path("vsoch/hello:latest.simg"))
	if err == nil || !strings.Contains(out, "Permission denied") {
		t.Fatalf("cp of a push that was refused: %v %s", err, out)
	}
	if !bytes.Equal(f.held("vsoch/hello:latest"), old) {
		t.Error("the old image is gone")
	}
	sameFile(t, f.path("vsoch/hello:latest.simg"), old)
	staged, err := f.cache.Stage.List()
	if err != nil || len(staged) != 1 {
		t.Fatalf("staged: %v %v, want the bytes that could not be pushed", staged, err)
	}
}

func TestBadInput(t *testing.T) {
	f := newFixture(t, mem.Options{})
	f.put("vsoch/hello:latest", random(10))
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("I am no image, and long enough to tell.\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	f.count.Reset()
	out, err := f.try("cp", text, f.path("vsoch/text:1.simg"))
	if err == nil || !strings.Contains(out, "Invalid argument") {
		t.Errorf("cp of a text file: %v %s", err, out)
	}
	if n := f.count.Calls(backendtest.Push); n != 0 {
		t.Error("a text file was offered to the registry")
	}
	if !strings.Contains(f.log.String(), "--any-file") {
		t.Error("the log does not tell of --any-file")
	}
	waitFor(t, func() bool { staged, err := f.cache.Stage.List(); return err == nil && len(staged) == 0 },
		func() string { return "a refused file stays staged" })
	for _, name := range []string{"vsoch/plain", "top:1.simg", "vsoch/a:1@b.simg"} {
		if out, err := f.try("cp", text, f.path(name)); err == nil || !strings.Contains(out, "Invalid argument") {
			t.Errorf("cp to %s: %v %s", name, err, out)
		}
	}
	if !strings.Contains(f.log.String(), "image:tag.simg") {
		t.Error("the log does not tell the form of a name")
	}
	if _, err := os.Stat(f.path("vsoch/text:1.simg")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the refused file is still there: %v", err)
	}
}

func TestAnyFile(t *testing.T) {
	f := newFixture(t, mem.Options{}, func(o *fs.Options) { o.AnyFile = true })
	f.put("vsoch/hello:latest", random(10))
	if err := os.WriteFile(f.path("vsoch/text:1.simg"), []byte("anything"), 0o644); err != nil {
		t.Fatal(err)
	}
	if string(f.held("vsoch/text:1")) != "anything" {
		t.Error("not pushed")
	}
}

func TestReadOnly(t *testing.T) {
	for name, f := range map[string]*fixture{
		"option":  newFixture(t, mem.Options{}, func(o *fs.Options) { o.ReadOnly = true }),
		"backend": newFixture(t, mem.Options{NoPush: true}),
	} {
		f.put("vsoch/hello:latest", random(10))
		path := f.path("vsoch/hello:latest.simg")
		for _, err := range []error{
			os.WriteFile(f.path("vsoch/new:1.simg"), nil, 0o644), os.Remove(path), os.Mkdir(f.path("c"), 0o755),
			os.WriteFile(path, nil, 0o644), os.Rename(path, f.path("vsoch/hello:2.simg")),
		} {
			if !errors.Is(err, syscall.EROFS) {
				t.Errorf("%s: %v, want EROFS", name, err)
			}
		}
	}
}

func TestDelete(t *testing.T) {
	f := newFixture(t, mem.Options{})
	data := random(1_000_000)
	f.put("vsoch/hello:latest", data)
	path := f.path("vsoch/hello:latest.simg")
	open, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	head := make([]byte, 1000)
	if _, err := open.ReadAt(head, 0); err != nil {
		t.Fatal(err)
	}
	f.run("rm", path)
	if f.held("vsoch/hello:latest") != nil {
		t.Error("rm returned 0 and the registry still has the image")
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("stat after rm: %v", err)
	}
	if got := f.run("ls", f.path("vsoch")); got != "" {
		t.Errorf("still listed: %s", got)
	}
	f.put("vsoch/frozen:1", data)
	f.reg.Freeze(backends.Ref{Collection: "vsoch", Image: "frozen", Tag: "1"}, true)
	if err := f.cache.Catalog.Refresh(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(f.path("vsoch/frozen:1.simg")); !errors.Is(err, syscall.EPERM) {
		t.Errorf("rm of a frozen image: %v, want EPERM", err)
	}
}

func TestDirectories(t *testing.T) {
	f := newFixture(t, mem.Options{})
	f.put("vsoch/hello:latest", random(10))
	f.run("mkdir", f.path("mine"))
	if got := f.run("ls", f.dir); got != "mine\nvsoch\n" {
		t.Errorf("ls: %q", got)
	}
	f.run("rmdir", f.path("mine"))
	if err := os.Remove(f.path("vsoch")); !errors.Is(err, syscall.ENOTEMPTY) {
		t.Errorf("rmdir of a collection with images: %v", err)
	}
	for _, name := range []string{"a:b", ".hidden", "x.tmp"} {
		if err := os.Mkdir(f.path(name), 0o755); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("mkdir %s: %v, want EINVAL", name, err)
		}
	}
}

func TestMove(t *testing.T) {
	for _, o := range []mem.Options{{}, {NoMove: true}} {
		t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
			f := newFixture(t, o)
			data := image(t, imagetest.Options{})
			f.put("vsoch/hello:latest", data)
			f.run("mkdir", "-p", f.path("other"))
			f.run("mv", f.path("vsoch/hello:latest.simg"), f.path("vsoch/hello:2.simg"))
			f.run("mv", f.path("vsoch/hello:2.simg"), f.path("other/hi:3.simg"))
			if f.held("vsoch/hello:latest") != nil || f.held("vsoch/hello:2") != nil || !bytes.Equal(f.held("other/hi:3"), data) {
				t.Error("mv did not move the image in the registry")
			}
			sameFile(t, f.path("other/hi:3.simg"), data)
		})
	}
}

func TestWriteAsideAndRename(t *testing.T) {
	f := newFixture(t, mem.Options{})
	f.put("vsoch/hello:latest", random(10))
	data := image(t, imagetest.Options{PadMB: 2})
	src := filepath.Join(t.TempDir(), "src.sif")
	if err := os.WriteFile(src, data, 0o644); err != nil {
		t.Fatal(err)
	}
	f.run("rsync", "-a", src, f.path("vsoch/sync:1.simg"))
	if !bytes.Equal(f.held("vsoch/sync:1"), data) {
		t.Error("rsync did not push")
	}
	f.run("rsync", "-a", src, f.path("vsoch/hello:latest.simg"))
	if !bytes.Equal(f.held("vsoch/hello:latest"), data) {
		t.Error("rsync did not replace")
	}
	f.run("cp", src, f.path("vsoch/.build-123"))
	if f.count.Calls(backendtest.Push) != 2 {
		t.Error("scratch reached the registry")
	}
	f.run("mv", f.path("vsoch/.build-123"), f.path("vsoch/built:1.simg"))
	if !bytes.Equal(f.held("vsoch/built:1"), data) {
		t.Error("the rename did not push")
	}
	sameFile(t, f.path("vsoch/built:1.simg"), data)
	f.run("sh", "-c", `echo text >"$1"`, "sh", f.path("vsoch/note.tmp"))
	if err := os.Rename(f.path("vsoch/note.tmp"), f.path("vsoch/note:1.simg")); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("rename of a text file to an image's name: %v", err)
	}
	sameFile(t, f.path("vsoch/note.tmp"), []byte("text\n"))
	f.run("rm", f.path("vsoch/note.tmp"))
	if staged, _ := f.cache.Stage.List(); len(staged) != 0 {
		t.Errorf("left in the stage: %+v", staged)
	}
}

// TestOverwrite replaces an image that is open, mapped and perhaps passed
// through: its readers and the verified blob must not change.
func TestOverwrite(t *testing.T) {
	for _, warm := range []bool{false, true} {
		t.Run(fmt.Sprintf("warm=%v", warm), func(t *testing.T) {
			f := newFixture(t, mem.Options{})
			before, after := image(t, imagetest.Options{PadMB: 4}), image(t, imagetest.Options{PadMB: 3})
			f.put("vsoch/hello:latest", before)
			path := f.path("vsoch/hello:latest.simg")
			if warm {
				sameFile(t, path, before)
			}
			// A child maps the image: a fault on the mount must not block our own runtime.
			reader := exec.Command(need(t, "python3"), "-c", `
import mmap,os,sys,hashlib
f=open(sys.argv[1],'rb'); m=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ)
m[0]; print('ready',flush=True); sys.stdin.readline()
print(hashlib.sha256(m).hexdigest()==hashlib.sha256(os.pread(f.fileno(),len(m),0)).hexdigest(), hashlib.sha256(m).hexdigest(),flush=True)`, path)
			in, _ := reader.StdinPipe()
			out := &logBuffer{}
			reader.Stdout, reader.Stderr = out, out
			if err := reader.Start(); err != nil {
				t.Fatal(err)
			}
			waitFor(t, func() bool { return strings.Contains(out.String(), "ready") })
			open, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer open.Close()

			src := filepath.Join(t.TempDir(), "new")
			if err := os.WriteFile(src, after, 0o644); err != nil {
				t.Fatal(err)
			}
			f.run("cp", src, path)
			if !bytes.Equal(f.held("vsoch/hello:latest"), after) {
				t.Fatal("the new image is not in the registry")
			}
			sameFile(t, path, after)
			got := make([]byte, len(before))
			if _, err := open.ReadAt(got, 0); err != nil || !bytes.Equal(got, before) {
				t.Errorf("the open reader sees something else than the old image (%v)", err)
			}
			fmt.Fprintln(in)
			if err := reader.Wait(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if want := "True " + digestOf(before); !strings.Contains(out.String(), want) {
				t.Errorf("the mapped reader: %s, want %s", out, want)
			}
			checkBlobs(t, f.store)
		})
	}
}

// TestPartialOverwrite changes some bytes of an image in place: the rest is
// the old image's.
func TestPartialOverwrite(t *testing.T) {
	f := newFixture(t, mem.Options{}, func(o *fs.Options) { o.AnyFile = true })
	data := random(1_000_000)
	f.put("vsoch/hello:latest", data)
	path := f.path("vsoch/hello:latest.simg")
	f.run("dd", "if=/dev/zero", "of="+path, "bs=1000", "seek=3", "count=2", "conv=notrunc")
	want := bytes.Clone(data)
	clear(want[3000:5000])
	if !bytes.Equal(f.held("vsoch/hello:latest"), want) {
		t.Error("not the old image with the change")
	}
	f.run("sh", "-c", `printf tail >>"$1"`, "sh", path)
	if !bytes.Equal(f.held("vsoch/hello:latest"), append(want, "tail"...)) {
		t.Error("append did not keep what was there")
	}
	checkBlobs(t, f.store)
}

func TestKilledWriter(t *testing.T) {
	f := newFixture(t, mem.Options{})
	f.put("vsoch/hello:latest", random(10))
	data := image(t, imagetest.Options{PadMB: 1})
	f.count.Reset()
	path := f.path("vsoch/killed:1.simg")
	// All bytes of a complete image arrive; only the writer's death tells.
	writer := exec.Command(need(t, "cat"))
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	writer.Stdout = out
	in, _ := writer.StdinPipe()
	if err := writer.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write(data); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { info, err := os.Stat(path); return err == nil && info.Size() == int64(len(data)) })
	// The test's own descriptor would be a second, living writer.
	go func() { time.Sleep(50 * time.Millisecond); writer.Process.Kill() }()
	writer.Wait()
	if n := f.count.Calls(backendtest.Push); n != 0 {
		t.Error("the killed writer's image was pushed")
	}
	if err := out.Close(); err != nil {
		t.Errorf("close by the living writer: %v", err)
	}
	if !bytes.Equal(f.held("vsoch/killed:1"), data) {
		t.Error("the living writer's close did not push")
	}

	// And alone: nothing is published, the bytes stay.
	alone := f.path("vsoch/alone:1.simg")
	writer = exec.Command("sh", "-c", `exec cat >"$1"`, "sh", alone)
	in, _ = writer.StdinPipe()
	if err := writer.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write(data); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { info, err := os.Stat(alone); return err == nil && info.Size() == int64(len(data)) })
	writer.Process.Kill()
	writer.Wait()
	waitFor(t, func() bool {
		staged, err := f.cache.Stage.List()
		return err == nil && len(staged) == 1 && staged[0].Reason != ""
	})
	if f.held("vsoch/alone:1") != nil {
		t.Error("a killed writer published its image")
	}
	if _, err := os.Stat(alone); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the name of an image that was not pushed: %v", err)
	}
}

func TestIncompleteImage(t *testing.T) {
	f := newFixture(t, mem.Options{})
	f.put("vsoch/hello:latest", random(10))
	data := image(t, imagetest.Options{PadMB: 1})
	f.count.Reset()
	half := filepath.Join(t.TempDir(), "half")
	if err := os.WriteFile(half, data[:len(data)/2], 0o644); err != nil {
		t.Fatal(err)
	}
	f.run("cp", half, f.path("vsoch/half:1.simg"))
	if n := f.count.Calls(backendtest.Push); n != 0 {
		t.Error("half an image was pushed")
	}
	waitFor(t, func() bool { staged, err := f.cache.Stage.List(); return err == nil && len(staged) == 1 })
	waitFor(t, func() bool { return strings.Contains(f.log.String(), "not pushed") },
		func() string { return "the log says nothing of an image that was not pushed" })
	// Two writers one after the other into one description: each close flushes.
	whole := f.path("vsoch/whole:1.simg")
	full := filepath.Join(t.TempDir(), "rest")
	if err := os.WriteFile(full, data[len(data)/2:], 0o644); err != nil {
		t.Fatal(err)
	}
	f.run("sh", "-c", `(cat "$1"; cat "$2") >"$3"`, "sh", half, full, whole)
	if !bytes.Equal(f.held("vsoch/whole:1"), data) {
		t.Error("an image written by two processes was not pushed whole")
	}
	if n := f.count.Calls(backendtest.Push); n != 1 {
		t.Errorf("%d pushes of one file", n)
	}
}

func TestOffline(t *testing.T) {
	f := newFixture(t, mem.Options{})
	data := random(2_000_000)
	f.put("vsoch/hello:latest", data)
	f.put("vsoch/other:latest", data[:1000])
	sameFile(t, f.path("vsoch/hello:latest.simg"), data)
	f.unmount()
	f.set = offline(f.set)
	f.mount()
	sameFile(t, f.path("vsoch/hello:latest.simg"), data)
	if got := f.run("ls", f.path("vsoch")); got != "hello:latest.simg\nother:latest.simg\n" {
		t.Errorf("ls: %s", got)
	}
	if _, err := os.ReadFile(f.path("vsoch/other:latest.simg")); !errors.Is(err, syscall.EIO) {
		t.Errorf("read of what is not cached: %v, want EIO", err)
	}
	sameFile(t, f.path("vsoch/hello:latest.simg"), data)
}

func TestNoLeaks(t *testing.T) {
	f := newFixture(t, mem.Options{})
	f.put("vsoch/hello:latest", random(3_000_000))
	f.unmount()
	runtime.GC()
	goroutines, files := runtime.NumGoroutine(), descriptors(t)
	for range 3 {
		f.mount()
		sameFile(t, f.path("vsoch/hello:latest.simg"), f.held("vsoch/hello:latest"))
		f.run("cp", imagetest.Squashfs(t, t.TempDir(), imagetest.Options{}), f.path("vsoch/new:1.simg"))
		f.run("getfattr", "-d", f.path("vsoch/new:1.simg"))
		f.run("rm", f.path("vsoch/new:1.simg"))
		f.unmount()
	}
	waitFor(t, func() bool {
		runtime.GC()
		return runtime.NumGoroutine() <= goroutines && descriptors(t) <= files
	}, func() string {
		stacks := make([]byte, 1<<20)
		return fmt.Sprintf("goroutines %d, were %d; descriptors %d, were %d\n%s", runtime.NumGoroutine(), goroutines, descriptors(t), files,
			stacks[:runtime.Stack(stacks, true)])
	})
}

func TestUnmountWaitsForWriters(t *testing.T) {
	f := newFixture(t, mem.Options{})
	f.put("vsoch/hello:latest", random(10))
	data := image(t, imagetest.Options{})
	out, err := os.Create(f.path("vsoch/late:1.simg"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Write(data); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.mounted.Unmount(context.Background()) }()
	time.Sleep(100 * time.Millisecond)
	if _, err := os.Open(f.path("vsoch/hello:latest.simg")); !errors.Is(err, syscall.EIO) {
		t.Errorf("open while unmounting: %v, want EIO", err)
	}
	if err := out.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !bytes.Equal(f.held("vsoch/late:1"), data) {
		t.Error("the image that was being written is lost")
	}
	if err := f.cache.Close(context.Background()); err != nil {
		t.Error(err)
	}
	f.mounted = nil
}
