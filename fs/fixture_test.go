package fs_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/backendtest"
	"github.com/sregistry/sregistry-fs/backends/imagefile/imagetest"
	"github.com/sregistry/sregistry-fs/backends/mem"
	"github.com/sregistry/sregistry-fs/cache"
	"github.com/sregistry/sregistry-fs/fs"
)

// fixture is a registry in memory and a mount of it.
type fixture struct {
	t       testing.TB
	reg     *mem.Registry
	set     backends.Set
	count   *backendtest.Counts
	cache   *cache.Cache
	mounted *fs.Mounted
	dir     string // mountpoint
	store   string // cache directory
	log     *logBuffer
	opts    fs.Options
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// needFUSE skips where nothing can be mounted, and says why.
func needFUSE(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no FUSE here: %v", err)
	}
	f.Close()
	if os.Geteuid() != 0 {
		need(t, "fusermount3")
	}
}

func need(t testing.TB, tool string) string {
	t.Helper()
	path, err := exec.LookPath(tool)
	if err != nil {
		t.Skipf("%s is not installed", tool)
	}
	return path
}

// mount makes a registry with o and mounts it; the test unmounts at its end.
func newFixture(t testing.TB, o mem.Options, change ...func(*fs.Options)) *fixture {
	t.Helper()
	needFUSE(t)
	f := &fixture{t: t, reg: mem.New(o), dir: t.TempDir(), store: t.TempDir(), log: &logBuffer{}}
	f.set, f.count = backendtest.Counting(f.reg.Set())
	f.opts = fs.Options{
		Backend: "mem", Source: "mem:test", UID: uint32(os.Getuid()), GID: uint32(os.Getgid()),
		StopTimeout: 10 * time.Second,
		Log:         slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, c := range change {
		c(&f.opts)
	}
	f.mount()
	t.Cleanup(func() {
		f.unmount()
		if t.Failed() {
			t.Logf("log:\n%s", f.log)
		}
	})
	return f
}

func (f *fixture) mount() {
	f.t.Helper()
	var err error
	f.cache, err = cache.Open(context.Background(), cache.Options{
		Dir: f.store, Registry: "mem:test", Backend: f.set, ListTTL: time.Hour, Log: f.opts.Log, Now: time.Now,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.mounted, err = fs.Mount(context.Background(), f.dir, f.cache, f.opts)
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) unmount() {
	f.t.Helper()
	if f.mounted == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := f.mounted.Unmount(ctx); err != nil {
		f.t.Errorf("unmount: %v", err)
	}
	if err := f.cache.Close(ctx); err != nil {
		f.t.Errorf("close the cache: %v", err)
	}
	f.mounted = nil
}

func (f *fixture) remount() {
	f.t.Helper()
	f.unmount()
	f.mount()
}

func (f *fixture) path(name string) string { return filepath.Join(f.dir, name) }

// put seeds the registry behind the mount's back.
func (f *fixture) put(name string, data []byte) backends.Ref {
	f.t.Helper()
	ref, _, err := backends.ParseRef(name)
	if err != nil {
		f.t.Fatal(err)
	}
	f.reg.Put(ref, data)
	return ref
}

// held gives what the registry has under name, or nil.
func (f *fixture) held(name string) []byte {
	f.t.Helper()
	ref, _, err := backends.ParseRef(name)
	if err != nil {
		f.t.Fatal(err)
	}
	data, _ := f.reg.Bytes(ref)
	return data
}

// run runs a command of the system and gives what it printed. A program that lies
// in a mount is started through env: this process serves the mount, and it stands still,
// collector and all, until the program that it starts itself was read.
func (f *fixture) run(name string, args ...string) string {
	f.t.Helper()
	out, err := f.try(name, args...)
	if err != nil {
		f.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func (f *fixture) try(name string, args ...string) (string, error) {
	f.t.Helper()
	cmd := exec.Command(need(f.t, name), args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func random(n int) []byte {
	data := make([]byte, n)
	rand.Read(data)
	return data
}

// image gives the bytes of a small real image of about mb MiB; different
// every time for a different name.
func image(t testing.TB, o imagetest.Options) []byte {
	t.Helper()
	data, err := os.ReadFile(imagetest.SIF(t, t.TempDir(), o))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func sameFile(t testing.TB, path string, want []byte) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	got, err := io.ReadAll(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s: %d bytes that differ from the %d expected", path, len(got), len(want))
	}
}
