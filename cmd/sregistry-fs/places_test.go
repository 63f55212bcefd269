package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sregistry/sregistry-fs/backends"
)

func TestParseMount(t *testing.T) {
	for line, want := range map[string]mountEntry{
		`36 35 0:45 / /mnt/with\040space rw,nosuid shared:1 master:2 - fuse.sregistry-fs dir:/a\134b rw,user_id=0`: {45, "/mnt/with space", fuseType, `dir:/a\b`},
		`21 1 8:1 / / rw - ext4 /dev/sda1 rw`:   {1, "/", "ext4", "/dev/sda1"},
		`22 1 0:5 / /x\0 rw - tmpfs tmp\777 rw`: {5, `/x\0`, "tmpfs", `tmp\777`},
	} {
		if got, ok := parseMount(line); !ok || got != want {
			t.Errorf("%s: %+v, %v", line, got, ok)
		}
	}
	for _, line := range []string{"", "x", "1 2 3 4 5", "1 2 0:x / / rw - a b c", "1 2 0:3 / / rw - "} {
		if got, ok := parseMount(line); ok {
			t.Errorf("%q: %+v", line, got)
		}
	}
	if m, ok := mountOf("/proc/self/status"); !ok || m.point != "/proc" {
		t.Errorf("/proc/self/status is in %+v", m)
	}
	if _, ok := underMount("/proc"); ok {
		t.Error("/proc is a mount of ours")
	}
}

func TestOverlap(t *testing.T) {
	dir := realPath(t.TempDir())
	must(t, os.MkdirAll(filepath.Join(dir, "a", "b"), 0o700))
	must(t, os.Symlink(filepath.Join(dir, "a"), filepath.Join(dir, "link")))
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"a", "a", true},
		{"a", "a/b", true},
		{"a/b/none/yet", "a", true},
		{"link/b", "a", true},
		{"a", "link", true},
		{"a", "ab", false},
		{"a/b", "a/c", false},
		{"a/..b", "a/b", false},
		{"a/..b", "a", true},
	} {
		if got := overlap(filepath.Join(dir, c.a), filepath.Join(dir, c.b)); got != c.want {
			t.Errorf("overlap(%s, %s) = %v", c.a, c.b, got)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestDefaultCacheDir(t *testing.T) {
	for _, c := range []struct {
		env  map[string]string
		uid  int
		want string
	}{
		{map[string]string{"XDG_CACHE_HOME": "/xdg", "HOME": "/home/u"}, 1000, "/xdg/sregistry-fs"},
		{map[string]string{"XDG_CACHE_HOME": "relative", "HOME": "/home/u"}, 1000, "/home/u/.cache/sregistry-fs"},
		{map[string]string{"XDG_CACHE_HOME": "/home/u/.cache", "HOME": "/root"}, 0, "/var/cache/sregistry-fs"},
		{nil, 1000, ""},
	} {
		got, err := defaultCacheDir(env(c.env), c.uid)
		if got != c.want || (err != nil) != (c.want == "") {
			t.Errorf("%v as %d: %q, %v", c.env, c.uid, got, err)
		}
	}
}

// A folder that others use is not taken from them: --cache-dir /tmp must not
// change the mode of /tmp.
func TestCacheDirIsNotTakenOver(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "theirs")
	take := func() error {
		a := &app{cfg: Config{CacheDir: dir}}
		_, err := a.cacheDir(slog.New(slog.DiscardHandler))
		return err
	}
	must(t, os.Mkdir(dir, 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o644))
	if err := take(); err == nil || hintOf(err) == "" {
		t.Error("a folder with other files became the cache")
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("its mode is now %v, %v", info.Mode(), err)
	}
	must(t, os.Rename(filepath.Join(dir, "file"), filepath.Join(dir, "lost+found")))
	must(t, take())
	must(t, os.Chmod(dir, 0o755))
	must(t, os.Mkdir(filepath.Join(dir, "blobs"), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o644))
	must(t, take()) // a cache, whatever else is in it
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the mode of a cache is %v, %v", info.Mode(), err)
	}
}

// A directory under /tmp could be somebody's trap: a link, or not ours.
func TestNodeDir(t *testing.T) {
	const nfs = 0x6969
	shared, bad, good := t.TempDir(), t.TempDir(), t.TempDir()
	fsType := func(path string) int64 {
		if path == shared {
			return nfs
		}
		return 0
	}
	must(t, os.Symlink(t.TempDir(), filepath.Join(bad, "sregistry-fs-7")))
	got, err := nodeDir([]string{shared, bad, good}, 7, fsType)
	if err != nil || got != filepath.Join(good, "sregistry-fs-7") {
		t.Fatalf("%q, %v", got, err)
	}
	if info, err := os.Stat(got); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if dir, err := nodeDir([]string{shared}, 7, fsType); err == nil || hintOf(err) == "" {
		t.Errorf("nowhere to go: %q, %v", dir, err)
	}
	if dir, err := nodeDir([]string{bad}, 7, fsType); err == nil {
		t.Errorf("a planted link was followed: %q", dir)
	}
	for magic, name := range map[int64]string{nfs: "NFS", 0x0BD00BD0: "Lustre", 0x47504653: "GPFS", 0x19830326: "BeeGFS", 0xEF53: ""} {
		if got := sharedFileSystem(magic); got != name {
			t.Errorf("%x is %q", magic, got)
		}
	}
	if fileSystemOf(filepath.Join(good, "not", "there")) != fileSystemOf(good) {
		t.Error("the type of a path that is not there yet is not its parent's")
	}
}

func TestPrivateDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "open")
	must(t, os.Mkdir(dir, 0o755))
	must(t, privateDir(dir, os.Stat))
	if info, _ := os.Stat(dir); info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v", info.Mode())
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can make a foreign directory")
	}
	must(t, os.Chown(dir, 12345, 12345))
	if err := privateDir(dir, os.Stat); !errors.Is(err, os.ErrPermission) {
		t.Errorf("a foreign directory: %v", err)
	}
	if _, err := checkMountpoint(dir, os.Geteuid(), nil, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "belongs to user 12345") {
		t.Errorf("a foreign mountpoint: %v", err)
	}
}

func TestControl(t *testing.T) {
	defer goleak.VerifyNone(t)
	dir := filepath.Join(t.TempDir(), "run")
	const point = "/mnt/a place"
	var refreshed string
	forced := false
	c, err := listenControl([]string{"/proc/cannot", dir}, point, controls{
		status: func() status { return status{PID: 42, Mountpoint: point} },
		refresh: func(_ context.Context, path string) error {
			refreshed = path
			return &backends.Error{Op: "list", Kind: backends.Throttled, Hint: "patience"}
		},
		unmount: func(_ context.Context, force bool) error { forced = force; return nil },
	})
	must(t, err)
	if info, err := os.Stat(c.path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
	dirs := []string{filepath.Join(dir, "absent"), dir}
	var st status
	must(t, ask(t.Context(), dirs, point, http.MethodGet, "/status", nil, &st))
	if st.PID != 42 || st.Mountpoint != point {
		t.Errorf("status %+v", st)
	}
	err = ask(t.Context(), dirs, point, http.MethodPost, "/refresh", url.Values{"path": {"a b/ä"}}, nil)
	if refreshed != "a b/ä" || err == nil || err.Error() != "list: throttled by the registry" || hintOf(err) != "patience" || exitCode(t.Context(), err) != exitUnavailable {
		t.Errorf("refresh of %q: %v (%s)", refreshed, err, hintOf(err))
	}
	must(t, ask(t.Context(), dirs, point, http.MethodPost, "/umount", url.Values{"force": {"true"}}, nil))
	if !forced {
		t.Error("force was lost")
	}
	if err := ask(t.Context(), dirs, "/mnt/other", http.MethodGet, "/status", nil, nil); !errors.Is(err, errNoControl) {
		t.Errorf("another mountpoint: %v", err)
	}
	if err := ask(t.Context(), dirs, point, http.MethodGet, "/nonsense", nil, nil); err == nil {
		t.Error("an unknown request succeeds")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	c.close(ctx)
	if err := ask(t.Context(), dirs, point, http.MethodGet, "/status", nil, nil); !errors.Is(err, errNoControl) {
		t.Errorf("after close: %v", err)
	}
}

// A daemon that was killed leaves its socket; the next one takes its place.
func TestControlReplacesDeadSocket(t *testing.T) {
	dir := t.TempDir()
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, socketName("/m"))})
	must(t, err)
	dead.SetUnlinkOnClose(false)
	must(t, dead.Close())
	c, err := listenControl([]string{dir}, "/m", controls{status: func() status { return status{PID: 1} }})
	must(t, err)
	defer c.close(t.Context())
	must(t, ask(t.Context(), []string{dir}, "/m", http.MethodGet, "/status", nil, nil))
}

func TestSocketDirs(t *testing.T) {
	for _, c := range []struct {
		env  map[string]string
		uid  int
		want string
	}{
		{map[string]string{"XDG_RUNTIME_DIR": "/run/user/7"}, 7, "/run/user/7/sregistry-fs /tmp/sregistry-fs-7"},
		{nil, 7, "/run/user/7/sregistry-fs /tmp/sregistry-fs-7"},
		{map[string]string{"XDG_RUNTIME_DIR": "/run/user/7"}, 0, "/run/sregistry-fs /tmp/sregistry-fs-0"},
	} {
		if got := strings.Join(socketDirs(env(c.env), c.uid), " "); got != c.want {
			t.Errorf("%v as %d: %s", c.env, c.uid, got)
		}
	}
	if n := len("/run/user/4294967294/sregistry-fs/" + socketName(strings.Repeat("x", 4096))); n > 107 {
		t.Errorf("a socket path has %d bytes, more than the system takes", n)
	}
}

func TestSharedCacheIsSaid(t *testing.T) {
	var log bytes.Buffer
	a := &app{getenv: env(nil)}
	a.cfg.CacheDir = filepath.Join(t.TempDir(), "c")
	dir, err := a.cacheDir(slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil || dir != a.cfg.CacheDir || log.Len() != 0 {
		t.Errorf("%q, %v, %s", dir, err, log.String())
	}
	must(t, os.WriteFile(filepath.Join(a.cfg.CacheDir, "f"), nil, 0o600))
	a.cfg.CacheDir = filepath.Join(a.cfg.CacheDir, "f")
	if _, err := a.cacheDir(slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(hintOf(err), "--cache-dir") {
		t.Errorf("a file as cache: %v", err)
	}
}
