//go:build bench

package bench

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/sregistry/sregistry-fs/backends/registry/registrytest"
)

// origin is the addresses of the servers, directly or over the slow link.
type origin struct{ http, s3, registry string }

// servers serve the same folder of images.
type servers struct {
	near, far origin
	links     []*link
	web, s3   logged // what they were asked
	registry  *registrytest.Server
	noS3      string // why there is no S3 server
	s3Version string
}

// The S3 server is ours alone, on loopback, for minutes.
const (
	s3User     = "bench"
	s3Password = "not-a-secret"
)

// logged counts a server's requests in its access log.
type logged struct{ file string }

func (l logged) requests() int {
	data, err := os.ReadFile(l.file)
	if err != nil {
		return 0
	}
	return bytes.Count(data, []byte("\n"))
}

// sent sums the bodies that nginx sent: its log has nothing else.
func (l logged) sent() (n int64) {
	data, err := os.ReadFile(l.file)
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(data) {
		size, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 10, 64)
		if err == nil {
			n += size
		}
	}
	return n
}

func (b *bench) startServers(large *image, programs []*image) *servers {
	b.t.Helper()
	s := &servers{web: logged{filepath.Join(b.dir, "nginx.log")}, s3: logged{filepath.Join(b.dir, "s3.log")}}
	web := freeAddr(b.t)
	conf := filepath.Join(b.dir, "nginx.conf")
	b.must(os.WriteFile(conf, fmt.Appendf(nil, `daemon off; pid %[1]s/nginx.pid; error_log %[1]s/nginx-errors.log;
worker_processes 1;
events {}
http {
	log_format sent '$body_bytes_sent';
	access_log %[3]s sent; sendfile on; keepalive_requests 100000;
	client_body_temp_path %[1]s/nginx-body; proxy_temp_path %[1]s/nginx-proxy; fastcgi_temp_path %[1]s/nginx-fastcgi;
	uwsgi_temp_path %[1]s/nginx-uwsgi; scgi_temp_path %[1]s/nginx-scgi;
	absolute_redirect off; server { listen %[2]s; root %[1]s/www; autoindex on; }
}
`, b.dir, web, s.web.file), 0o644))
	b.serve(exec.Command("nginx", "-p", b.dir, "-c", conf), web)
	s.near.http = "http://" + web
	s.far.http = "http://" + s.link(b, web)

	if gateway, missing := b.gatewayBinary(); missing != "" {
		s.noS3 = missing
	} else {
		addr := freeAddr(b.t)
		cmd := exec.Command(gateway, "--port", addr, "--access-log", s.s3.file, "posix", b.www())
		cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+s3User, "ROOT_SECRET_KEY="+s3Password)
		b.serve(cmd, addr)
		s.s3Version = moduleVersion(gateway)
		s.near.s3 = "http://" + addr
		s.far.s3 = "http://" + s.link(b, addr)
	}

	registry, err := registrytest.New(registrytest.Options{
		NoLimits: true, Dir: filepath.Join(b.dir, "registry"),
		Users: []registrytest.User{{Name: registryUser, Token: registryToken}},
	})
	b.must(err)
	b.t.Cleanup(registry.Close)
	s.registry, s.near.registry = registry, registry.URL
	for _, img := range append([]*image{large}, programs...) {
		f, err := os.Open(img.path)
		b.must(err)
		_, err = registry.Add(registrytest.Image{Collection: collection, Name: img.name, Tag: "latest"}, f)
		b.must(err)
		b.must(f.Close())
	}
	return s
}

func (s *servers) link(b *bench, upstream string) string {
	l := newLink(b.t, upstream, linkRate, linkDelay)
	s.links = append(s.links, l)
	return l.addr()
}

// moved gives what went over the slow link so far, both ways.
func (s *servers) moved() (n int64) {
	for _, l := range s.links {
		n += l.down.Load() + l.up.Load()
	}
	return n
}

func (s *servers) requests() int { return s.web.requests() + s.s3.requests() + s.registry.Count("") }

func (s *servers) sent() int64 {
	registry, _ := s.registry.Bytes()
	return s.web.sent() + registry
}

// serve runs a server until the benchmark ends, and returns when it answers.
func (b *bench) serve(cmd *exec.Cmd, addr string) {
	b.t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	b.must(cmd.Start())
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	b.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
	})
	for range 500 {
		if resp, err := http.Get("http://" + addr + "/"); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	b.t.Fatalf("%s does not answer:\n%s", cmd.Path, out.String())
}

func freeAddr(t interface{ Fatal(...any) }) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}
