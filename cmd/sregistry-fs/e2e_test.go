package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sregistry/sregistry-fs/backends/imagefile/imagetest"
	"github.com/sregistry/sregistry-fs/backends/registry/registrytest"
)

const (
	testUser  = "vsoch"
	testToken = "0123456789abcdef0123456789abcdef01234567"
)

// build links the program once for all tests that run it as people do.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sregistry-fs-e2e-")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "sregistry-fs")
	out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return bin, nil
})

// site is a home with settings, a registry and a mountpoint.
type site struct {
	t         testing.TB
	bin       string
	home, mnt string
	srv       *registrytest.Server
	env       []string
	mounted   bool
	close     func()
	spec      string
}

func newSite(t testing.TB, o registrytest.Options) *site {
	t.Helper()
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Skipf("no FUSE here: %v", err)
	} else {
		f.Close()
	}
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	o.Users = []registrytest.User{{Name: testUser, Token: testToken}}
	srv, err := registrytest.New(o)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, bin: bin, home: t.TempDir(), mnt: t.TempDir(), srv: srv, close: sync.OnceFunc(srv.Close), spec: "registry:" + srv.URL}
	secrets := fmt.Sprintf(`{"registry": {"username": %q, "token": %q}}`, testUser, testToken)
	if err := os.WriteFile(filepath.Join(s.home, ".sregistry"), []byte(secrets), 0o600); err != nil {
		t.Fatal(err)
	}
	s.env = []string{"HOME=" + s.home, "XDG_CACHE_HOME=" + s.home + "/cache", "XDG_RUNTIME_DIR=" + s.home, "PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	t.Cleanup(func() {
		s.umount()
		s.close()
	})
	return s
}

func (s *site) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = s.env
	return cmd
}

func (s *site) try(name string, args ...string) (string, error) {
	out, err := s.command(name, args...).CombinedOutput()
	return string(out), err
}

func (s *site) run(name string, args ...string) string {
	s.t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		s.t.Skipf("%s is not installed", name)
	}
	out, err := s.try(name, args...)
	if err != nil {
		s.t.Fatalf("%s %s: %v\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
	return out
}

func (s *site) mount(args ...string) {
	s.t.Helper()
	args = append([]string{"mount", "--daemon", "--cache-dir", s.home + "/cache", "--log-file", s.home + "/log", "--verbose"}, args...)
	s.run(s.bin, append(args, s.spec, s.mnt)...)
	s.mounted = true
}

func (s *site) umount() {
	s.t.Helper()
	if !s.mounted {
		return
	}
	s.mounted = false
	if out, err := s.try(s.bin, "umount", s.mnt); err != nil {
		s.t.Errorf("umount: %v\n%s", err, out)
	}
	if s.t.Failed() {
		log, _ := os.ReadFile(s.home + "/log")
		s.t.Logf("log:\n%s", log)
	}
}

func (s *site) path(name string) string { return filepath.Join(s.mnt, name) }

func (s *site) seed(collection, name, tag string, data []byte) {
	s.t.Helper()
	if _, err := s.srv.Add(registrytest.Image{Collection: collection, Name: name, Tag: tag}, bytes.NewReader(data)); err != nil {
		s.t.Fatal(err)
	}
}

// held reads what the registry has on its own disk.
func (s *site) held(collection, name, tag string) []byte {
	s.t.Helper()
	image, ok := s.srv.Get(collection, name, tag)
	if !ok {
		return nil
	}
	data, err := os.ReadFile(image.File)
	if err != nil {
		s.t.Errorf("the registry lost %s/%s:%s: %v", collection, name, tag, err)
	}
	return data
}

func (s *site) requests() int {
	n := 0
	for c := range maps.Values(s.srv.Counts()) {
		n += c
	}
	return n
}

func (s *site) same(path string, want []byte) {
	s.t.Helper()
	out := filepath.Join(s.t.TempDir(), "copy")
	s.run("cp", path, out)
	got, err := os.ReadFile(out)
	if err != nil {
		s.t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		s.t.Errorf("cp %s: %d bytes that differ from the %d expected", path, len(got), len(want))
	}
}

func readImage(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestEndToEnd is the main job against a registry as it is shipped: limits on,
// deletes broken.
func TestEndToEnd(t *testing.T) {
	s := newSite(t, registrytest.Options{})
	dir := t.TempDir()
	sif := imagetest.SIF(t, dir, imagetest.Options{Program: true, PadMB: 8})
	small := imagetest.Squashfs(t, dir, imagetest.Options{Name: "small.sif"})
	hello, tool := readImage(t, sif), readImage(t, small)
	s.seed("vsoch", "hello-world", "latest", hello)
	for i := range 20 {
		s.seed("many", "image", fmt.Sprint(i), tool)
	}
	s.seed("many", "cold", "1", append(bytes.Clone(tool), 0))
	s.srv.MakeCollection("secret", true, testUser)
	s.seed("secret", "known", "1", tool)

	s.mount()
	listing := s.run("ls", "-lR", s.mnt)
	for _, want := range []string{"hello-world:latest.simg", "image:19.simg"} {
		if !strings.Contains(listing, want) {
			t.Errorf("ls -lR lacks %s:\n%s", want, listing)
		}
	}
	if strings.Contains(listing, "secret") {
		t.Error("a private collection is listed")
	}
	if n := s.requests(); n > 2 {
		t.Errorf("mount and ls -lR cost %d requests: %v", n, s.srv.Counts())
	}

	t.Run("exec", func(t *testing.T) {
		inside := t.TempDir()
		offset := bytes.Index(hello, []byte("hsqs"))
		s.run("squashfuse", "-o", fmt.Sprintf("offset=%d", offset), s.path("vsoch/hello-world:latest.simg"), inside)
		out, err := s.try("env", filepath.Join(inside, "bin", "hello")) // env: this process serves the registry
		if out, err := exec.Command("umount", inside).CombinedOutput(); err != nil {
			if _, err := s.try("fusermount3", "-u", inside); err != nil {
				t.Errorf("umount: %v %s", err, out)
			}
		}
		if err != nil || !strings.Contains(out, "hello") {
			t.Errorf("the program printed %q, %v", out, err)
		}
	})
	t.Run("pull", func(t *testing.T) {
		s.same(s.path("vsoch/hello-world:latest.simg"), hello)
		if n := s.srv.Count("download"); n != 1 {
			t.Errorf("running and copying an image cost %d downloads", n)
		}
	})
	t.Run("push", func(t *testing.T) {
		s.run("mkdir", s.path("mine"))
		s.srv.ResetCounts()
		s.run("cp", small, s.path("mine/tool:1.simg"))
		if !bytes.Equal(s.held("mine", "tool", "1"), tool) {
			t.Error("cp returned 0 and the registry has not the image")
		}
		// The name, the comparison, two steps of the push, the verification.
		if n := s.requests(); n > 5 {
			t.Errorf("a push cost %d requests: %v", n, s.srv.Counts())
		}
		s.srv.ResetCounts()
		s.same(s.path("mine/tool:1.simg"), tool)
		if n := s.srv.Count("download"); n != 0 {
			t.Error("reading back a push downloads it")
		}
		// The same bytes again destroy the image on the server, if they are sent.
		s.run("cp", small, s.path("mine/tool:1.simg"))
		if !bytes.Equal(s.held("mine", "tool", "1"), tool) {
			t.Error("pushing the same bytes again destroyed the image")
		}
		s.run("cp", sif, s.path("mine/tool:1.simg"))
		if !bytes.Equal(s.held("mine", "tool", "1"), hello) {
			t.Error("the overwrite did not arrive")
		}
		s.same(s.path("mine/tool:1.simg"), hello)
	})
	t.Run("private", func(t *testing.T) {
		s.same(s.path("secret/known:1.simg"), tool)
		s.run("cp", sif, s.path("secret/new:2.simg"))
		if !bytes.Equal(s.held("secret", "new", "2"), hello) {
			t.Error("the push to a private collection did not arrive")
		}
		s.same(s.path("secret/new:2.simg"), hello)
	})
	t.Run("record", func(t *testing.T) {
		out := s.run("getfattr", "-d", s.path("vsoch/hello-world:latest.simg"))
		for _, want := range []string{`collection="vsoch"`, `image="hello-world"`, `tag="latest"`, "label.", "runscript=", "digest=", `cached="yes"`} {
			if !strings.Contains(out, want) {
				t.Errorf("getfattr -d lacks %s:\n%s", want, out)
			}
		}
	})
	t.Run("delete is broken", func(t *testing.T) {
		out, err := s.try("rm", s.path("many/image:3.simg"))
		if err == nil || !strings.Contains(out, "Input/output error") {
			t.Errorf("rm: %v %s", err, out)
		}
		if s.held("many", "image", "3") == nil {
			t.Error("the image is gone")
		}
	})
	t.Run("offline", func(t *testing.T) {
		s.umount()
		s.close()
		s.mount()
		s.same(s.path("vsoch/hello-world:latest.simg"), hello)
		if got := s.run("ls", s.path("vsoch")); got != "hello-world:latest.simg\n" {
			t.Errorf("ls: %q", got)
		}
		if out, err := s.try("cat", s.path("many/cold:1.simg")); err == nil || !strings.Contains(out, "Input/output error") {
			t.Errorf("what is not cached: %v", err)
		}
	})
	t.Run("no secret", func(t *testing.T) {
		log, err := os.ReadFile(s.home + "/log")
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{testToken, s.srv.Secret("vsoch"), s.srv.Secret("secret")} {
			if bytes.Contains(log, []byte(secret)) {
				t.Errorf("the log holds a secret: %s", log)
			}
		}
	})
}

func TestDeleteThatWorks(t *testing.T) {
	s := newSite(t, registrytest.Options{DeleteWorks: true})
	data := readImage(t, imagetest.Squashfs(t, t.TempDir(), imagetest.Options{}))
	s.seed("vsoch", "hello", "latest", data)
	s.seed("vsoch", "frozen", "1", data)
	s.srv.Freeze("vsoch", "frozen", "1", true)
	s.mount()
	s.run("rm", s.path("vsoch/hello:latest.simg"))
	if _, ok := s.srv.Get("vsoch", "hello", "latest"); ok {
		t.Error("rm returned 0 and the registry still has the image")
	}
	if out, err := s.try("rm", "-f", s.path("vsoch/frozen:1.simg")); err == nil || !strings.Contains(out, "Operation not permitted") {
		t.Errorf("rm of a frozen image: %v %s", err, out)
	}
	if got := s.run("ls", s.path("vsoch")); got != "frozen:1.simg\n" {
		t.Errorf("ls: %q", got)
	}
}

// TestTwoProcesses uses one cache from two mounts and a pull.
func TestTwoProcesses(t *testing.T) {
	s := newSite(t, registrytest.Options{NoLimits: true})
	data := readImage(t, imagetest.Squashfs(t, t.TempDir(), imagetest.Options{PadMB: 4}))
	s.seed("vsoch", "hello", "latest", data)
	s.seed("vsoch", "other", "latest", data[:len(data)/2])
	s.mount()
	second := t.TempDir()
	s.run(s.bin, "mount", "--daemon", "--cache-dir", s.home+"/cache", s.spec, second)
	defer s.run(s.bin, "umount", second)
	s.same(s.path("vsoch/hello:latest.simg"), data)
	s.same(filepath.Join(second, "vsoch/hello:latest.simg"), data)
	out := filepath.Join(t.TempDir(), "pulled.sif")
	s.run(s.bin, "pull", "--cache-dir", s.home+"/cache", "--backend", s.spec, "vsoch/hello:latest", "-o", out)
	if !bytes.Equal(readImage(t, out), data) {
		t.Error("pull while mounted gives other bytes")
	}
	if n := s.srv.Count("download"); n != 1 {
		t.Errorf("three processes on one cache cost %d downloads", n)
	}
}

// TestSignals: SIGTERM and Ctrl-C unmount a foreground mount cleanly.
func TestSignals(t *testing.T) {
	for _, sig := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		t.Run(sig.String(), func(t *testing.T) {
			s := newSite(t, registrytest.Options{})
			s.seed("vsoch", "hello", "latest", readImage(t, imagetest.Squashfs(t, t.TempDir(), imagetest.Options{})))
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, s.bin, "mount", s.spec, s.mnt)
			cmd.Env = s.env
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			for ctx.Err() == nil && !slices.Contains(strings.Fields(readMounts(t)), s.mnt) {
				time.Sleep(10 * time.Millisecond)
			}
			s.run("ls", s.path("vsoch"))
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("exit: %v\n%s", err, &out)
			}
			if slices.Contains(strings.Fields(readMounts(t)), s.mnt) {
				t.Error("still mounted")
			}
		})
	}
}

// TestStaleMount: the mount of a killed daemon is cleaned by the next one.
func TestStaleMount(t *testing.T) {
	s := newSite(t, registrytest.Options{})
	s.seed("vsoch", "hello", "latest", readImage(t, imagetest.Squashfs(t, t.TempDir(), imagetest.Options{})))
	cmd := s.command(s.bin, "mount", s.spec, s.mnt)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if slices.Contains(strings.Fields(readMounts(t)), s.mnt) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.run("ls", s.path("vsoch"))
	cmd.Process.Kill()
	cmd.Wait()
	if _, err := os.ReadDir(s.mnt); !errors.Is(err, syscall.ENOTCONN) {
		t.Errorf("the mount is not stale: %v", err)
	}
	s.mount()
	if got := s.run("ls", s.path("vsoch")); got != "hello:latest.simg\n" {
		t.Errorf("ls: %q", got)
	}
}

// TestCrashLeavesATrace: what a dying daemon has to say is in its log.
func TestCrashLeavesATrace(t *testing.T) {
	s := newSite(t, registrytest.Options{})
	out := s.run(s.bin, "mount", "--daemon", "--cache-dir", s.home+"/cache", "--log-file", s.home+"/log", s.spec, s.mnt)
	var pid int
	if _, err := fmt.Sscanf(out[strings.LastIndex(out, "process "):], "process %d", &pid); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := syscall.Kill(pid, syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if syscall.Kill(pid, 0) != nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	log, err := os.ReadFile(s.home + "/log")
	if err != nil || !bytes.Contains(log, []byte("SIGABRT")) || !bytes.Contains(log, []byte("goroutine ")) {
		t.Errorf("the log says nothing of the crash: %v\n%s", err, log)
	}
	s.mount() // clears what the crash left
}

func readMounts(t testing.TB) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
