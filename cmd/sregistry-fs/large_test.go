package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sregistry/sregistry-fs/backends/imagefile/imagetest"
	"github.com/sregistry/sregistry-fs/backends/registry/registrytest"
)

// TestLargeImage runs a program out of an image of some hundred MB while it
// is cold, then compares every byte: with ranges from nginx, and in one
// stream from a registry.
func TestLargeImage(t *testing.T) {
	dir := t.TempDir()
	openUpParents(t, dir)
	folder := filepath.Join(dir, "www", "vsoch")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	image := imagetest.SIF(t, folder, imagetest.Options{Name: "large:1.simg", Program: true, PadMB: 300})
	head := make([]byte, 1<<20)
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(head, 0); err != nil {
		t.Fatal(err)
	}
	offset := bytes.Index(head, []byte("hsqs"))

	s := newSite(t, registrytest.Options{})
	if _, err := s.srv.Add(registrytest.Image{Collection: "vsoch", Name: "large", Tag: "1"}, f); err != nil {
		t.Fatal(err)
	}
	check := func(t *testing.T, how string, mount, umount []string) {
		s.mount()
		inside := t.TempDir()
		path := s.path("vsoch/large:1.simg")
		s.run(mount[0], append(mount[1:], path, inside)...)
		out, err := s.try(filepath.Join(inside, "bin", "hello"))
		s.run(umount[0], append(umount[1:], inside)...)
		if err != nil || !strings.Contains(out, "hello") {
			t.Errorf("%s: the program printed %q, %v", how, out, err)
		}
		s.run("cmp", image, path) // cold
		s.run("cmp", image, path) // warm
		s.umount()
		if err := os.RemoveAll(s.home + "/cache"); err != nil {
			t.Fatal(err)
		}
	}
	squashfuse := []string{"squashfuse", "-o", fmt.Sprintf("offset=%d", offset)}
	unfuse := []string{"fusermount3", "-u"}
	t.Run("stream", func(t *testing.T) { check(t, "squashfuse", squashfuse, unfuse) })
	s.spec = "http:" + serveNginx(t, dir)
	t.Run("ranges", func(t *testing.T) { check(t, "squashfuse", squashfuse, unfuse) })
	t.Run("loop", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("a loop mount needs root")
		}
		check(t, "loop mount", []string{"mount", "-t", "squashfs", "-o", fmt.Sprintf("loop,ro,offset=%d", offset)}, []string{"umount"})
	})
}

// serveNginx serves dir/www on a free port of loopback until the test ends.
func serveNginx(t testing.TB, dir string) string {
	t.Helper()
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		t.Skip("nginx is not installed")
	}
	port := freePort(t)
	conf := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf(`daemon off; pid %[1]s/pid; error_log %[1]s/error.log;
events {}
http {
  access_log off; sendfile on;
  client_body_temp_path %[1]s/t1; proxy_temp_path %[1]s/t2; fastcgi_temp_path %[1]s/t3; uwsgi_temp_path %[1]s/t4; scgi_temp_path %[1]s/t5;
  server { listen 127.0.0.1:%[2]d; root %[1]s/www; autoindex on; }
}
`, dir, port)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(nginx, "-p", dir, "-c", conf)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Signal(os.Interrupt); cmd.Wait() })
	return awaitServer(t, port)
}

func openUpParents(t testing.TB, dir string) {
	t.Helper()
	for ; strings.HasPrefix(dir, os.TempDir()+"/"); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// freePort gives a port of loopback that nobody listens on now.
func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// awaitServer gives the address of a server on a port of loopback once it
// answers.
func awaitServer(t testing.TB, port int) string {
	t.Helper()
	address := fmt.Sprintf("127.0.0.1:%d", port)
	for range 500 {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			return "http://" + address
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("nginx does not answer")
	return ""
}
