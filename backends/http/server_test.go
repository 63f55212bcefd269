package httpindex

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/secrets"
)

// dialTest makes a backend for a base address.
func dialTest(t testing.TB, base string, settings map[string]string) (backends.Backend, *logged) {
	t.Helper()
	log := &logged{}
	b, err := Driver().Dial(context.Background(), backends.Config{
		Location: base, Settings: secrets.Fixed("http", settings), Now: time.Now,
		Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatalf("Dial: %v", err)
	}
	return b, log
}

type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// folder is a directory that a web server shows. Each file that is put into
// it gets a time of change of its own second, because that is all that such
// servers tell apart.
type folder struct {
	path string
	mu   sync.Mutex
	last time.Time
}

func newFolder(t testing.TB) *folder {
	return &folder{path: t.TempDir(), last: time.Now().Add(-time.Hour).Truncate(time.Second)}
}

func (f *folder) put(name string, data []byte) error {
	full := filepath.Join(f.path, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		return err
	}
	tmp := filepath.Join(f.path, ".new")
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return err
	}
	f.mu.Lock()
	f.last = f.last.Add(time.Second)
	last := f.last
	f.mu.Unlock()
	if err := os.Chtimes(tmp, last, last); err != nil {
		return err
	}
	return os.Rename(tmp, full)
}

func fileOf(ref backends.Ref) string { return ref.Collection + "/" + ref.FileName() }

// goServer serves a folder with the standard library's file server: an index
// without times, no ETags. It counts requests.
func goServer(t testing.TB, f *folder) (base string, requests func() int) {
	var n atomic.Int64
	files := http.FileServer(http.Dir(f.path))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL, func() int { return int(n.Load()) }
}

// nginx serves a folder with a real nginx: at / with its default index, at
// /json/ with the JSON one, at /rounded/ with rounded sizes, at
// /private/ behind a password.
func nginx(t testing.TB, f *folder) (base string) {
	program, err := exec.LookPath("nginx")
	if err != nil {
		t.Skip("nginx is not installed: this test needs the real server")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	dir := t.TempDir()
	user := ""
	if os.Getuid() == 0 {
		user = "user root;"
	}
	// "user" with the password "canary-http-password".
	if err := os.WriteFile(dir+"/passwd", []byte("user:{PLAIN}canary-http-password\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf(`daemon off; master_process off; worker_processes 1; pid %[1]s/pid; error_log stderr error; %[4]s
events { worker_connections 256; }
http {
	access_log off; default_type application/octet-stream;
	client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
	server {
		listen %[2]s; root %[3]s; autoindex on;
		location /json/ { alias %[3]s/; autoindex_format json; }
		location /rounded/ { alias %[3]s/; autoindex_exact_size off; autoindex_localtime on; }
		location /noetag/ { alias %[3]s/; etag off; }
		location /norange/ { alias %[3]s/; max_ranges 0; }
		location /noindex/ { alias %[3]s/; autoindex off; }
		location /private/ { alias %[3]s/; auth_basic images; auth_basic_user_file %[1]s/passwd; }
	}
}
`, dir, addr, f.path, user)
	if err := os.WriteFile(dir+"/nginx.conf", []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	var out logged
	cmd := exec.Command(program, "-e", "stderr", "-p", dir, "-c", dir+"/nginx.conf")
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for range 200 {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_ = c.Close()
			return "http://" + addr
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("nginx does not start:\n%s", out.String())
	return ""
}

func images(t testing.TB, b backends.Backend, collection string) map[backends.Ref]backends.Record {
	t.Helper()
	out := map[backends.Ref]backends.Record{}
	for rec, err := range b.Images(context.Background(), collection) {
		if err != nil {
			t.Fatalf("Images %q: %v", collection, err)
		}
		if _, twice := out[rec.Ref]; twice {
			t.Errorf("Images %q lists %v twice", collection, rec.Ref)
		}
		out[rec.Ref] = rec
	}
	return out
}

func collections(t testing.TB, b backends.Backend) string {
	t.Helper()
	var out []string
	for name, err := range b.Collections(context.Background()) {
		if err != nil {
			t.Fatalf("Collections: %v", err)
		}
		out = append(out, name)
	}
	return strings.Join(out, " ")
}
