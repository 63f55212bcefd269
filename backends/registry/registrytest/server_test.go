package registrytest_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sregistry/sregistry-fs/backends/registry/registrytest"
)

const token = "0123456789abcdef0123456789abcdef01234567"

func serve(t *testing.T, o registrytest.Options) *registrytest.Server {
	t.Helper()
	if o.Users == nil {
		o.Users = []registrytest.User{{Name: "vsoch", Token: token}, {Name: "root", Token: token, Superuser: true}}
	}
	o.Dir = t.TempDir()
	s, err := registrytest.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func add(t *testing.T, s *registrytest.Server, coll, name, tag, body string) registrytest.Image {
	t.Helper()
	img, err := s.Add(registrytest.Image{Collection: coll, Name: name, Tag: tag}, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// do makes a request without following redirects; header holds pairs.
func do(t *testing.T, method, url string, body io.Reader, header ...string) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(text)
}

func sign(user, kind, coll, name, tag string, at time.Time) string {
	stamp := at.UTC().Format("20060102T15Z")
	m := hmac.New(sha256.New, []byte(token))
	fmt.Fprintf(m, "%s|%s|%s|%s|%s|", kind, coll, stamp, name, tag)
	return fmt.Sprintf("SREGISTRY-HMAC-SHA256 Credential=%s/%s/%s,Signature=%s", kind, base64.StdEncoding.EncodeToString([]byte(user)), stamp, hex.EncodeToString(m.Sum(nil)))
}

func upload(t *testing.T, s *registrytest.Server, cid, user, coll, name, tag, body string, at time.Time) (int, string) {
	t.Helper()
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	for k, v := range map[string]string{"name": name, "collection": cid, "tag": tag} {
		_ = w.WriteField(k, v) // memory does not fail
	}
	f, _ := w.CreateFormFile("file1", "x.sif")
	_, _ = io.WriteString(f, body)
	_ = w.Close()
	status, _, text := do(t, "POST", s.URL+"/upload", &form, "Content-Type", w.FormDataContentType(), "Authorization", sign(user, "upload", coll, name, tag, at))
	return status, text
}

func TestAnswers(t *testing.T) {
	s := serve(t, registrytest.Options{NoLimits: true})
	add(t, s, "dino", "tacos", "latest", "tacos")
	add(t, s, "hidden", "tacos", "latest", "hidden")
	s.MakeCollection("hidden", true, "vsoch")
	secret := s.Secret("dino")
	now := time.Now()
	for _, c := range []struct {
		what, method, path string
		header             []string
		status             int
		body               string // a part of it
	}{
		{"list", "GET", "/api/collections/", nil, 200, `"count":1`},
		{"list without slash", "GET", "/api/collections?limit=1", nil, 301, ""},
		{"list without slash", "GET", "/api/containers", nil, 301, ""},
		{"unknown collection", "GET", "/api/collection/absent", nil, 200, "{}"},
		{"capitals", "GET", "/api/collection/DINO", nil, 200, `"dino/tacos:latest"`},
		{"private collection", "GET", "/api/collection/hidden", nil, 500, "<html"},
		{"private collection by number", "GET", "/api/collections/2/", nil, 404, "Not found."},
		{"collection search", "GET", "/api/collection/search/dino", nil, 500, "<html"},
		{"record", "GET", "/api/container/dino/tacos", nil, 200, "/containers/1/download/" + secret},
		{"version is ignored", "GET", "/api/container/dino/tacos@whatever", nil, 200, `"tag":"latest"`},
		{"capitals in a record", "GET", "/api/container/dino/Tacos", nil, 404, "Not found."},
		{"private record", "GET", "/api/container/hidden/tacos", nil, 403, "Authentication Required"},
		{"private record, Token", "GET", "/api/container/hidden/tacos", []string{"Authorization", "Token " + token}, 500, "<html"},
		{"private record, stale hour", "GET", "/api/container/hidden/tacos", []string{"Authorization", sign("vsoch", "pull", "hidden", "tacos", "latest", now.Add(-time.Hour))}, 200, "400"},
		{"private record, other kind", "GET", "/api/container/hidden/tacos", []string{"Authorization", sign("vsoch", "push", "hidden", "tacos", "latest", now)}, 200, "400"},
		{"private record, unknown user", "GET", "/api/container/hidden/tacos", []string{"Authorization", sign("x", "pull", "hidden", "tacos", "latest", now)}, 403, "Unauthorized"},
		{"private record, signed", "GET", "/api/container/hidden/tacos", []string{"Authorization", sign("vsoch", "pull", "hidden", "tacos", "latest", now)}, 200, `"image"`},
		{"user name with a slash in base64", "GET", "/api/container/hidden/tacos", []string{"Authorization", sign("???", "pull", "hidden", "tacos", "latest", now)}, 500, ""},
		{"wrong token", "GET", "/api/collections/", []string{"Authorization", "Token x"}, 403, "Invalid token."},
		{"as a browser", "GET", "/api/collections/", []string{"Accept", "text/html"}, 200, "<html"},
		{"search finds private", "GET", "/api/container/search/collection/hidden/name/tacos/tag/latest", nil, 200, `"hidden"`},
		{"search finds nothing", "GET", "/api/container/search/name/x", nil, 200, "[]"},
		{"unsigned push", "POST", "/api/upload/chunked_upload", nil, 500, "<html"},
		{"upload by GET", "GET", "/upload", nil, 405, ""},
		{"upload of another type", "POST", "/upload", []string{"Content-Type", "text/plain"}, 415, ""},
		{"delete of nothing", "DELETE", "/api/container/dino/absent:1", nil, 404, "Container Not Found"},
		{"delete without tag", "DELETE", "/api/container/dino/tacos", nil, 404, "Container Not Found"},
		{"delete, signed", "DELETE", "/api/container/dino/tacos:latest", []string{"Authorization", sign("vsoch", "delete", "dino", "tacos", "latest", now)}, 500, "<html"},
		{"wrong secret", "GET", "/containers/1/download/x", nil, 404, "<html"},
		{"a range", "GET", "/containers/1/download/" + secret, []string{"Range", "bytes=1-2"}, 200, "tacos"},
		{"version", "GET", "/version", nil, 200, "apiVersion"},
	} {
		status, h, body := do(t, c.method, s.URL+c.path, nil, c.header...)
		if status != c.status || !strings.Contains(body, c.body) {
			t.Errorf("%s: %d %q", c.what, status, body)
		}
		if c.what == "a range" && (h.Get("Accept-Ranges") != "" || h.Get("ETag") != "" || h.Get("Content-Length") != "5") {
			t.Errorf("header %v", h)
		}
	}
	s.Freeze("dino", "tacos", "latest", true)
	if status, _, body := do(t, "DELETE", s.URL+"/api/container/dino/tacos:latest", nil); status != 403 || !strings.Contains(body, "frozen") {
		t.Errorf("frozen: %d %s", status, body)
	}
}

func TestDeleteRepaired(t *testing.T) {
	s := serve(t, registrytest.Options{DeleteWorks: true})
	add(t, s, "dino", "tacos", "1", "x")
	if status, _, _ := do(t, "DELETE", s.URL+"/api/container/dino/tacos:1", nil); status != 403 {
		t.Errorf("unsigned: %d", status)
	}
	auth := sign("vsoch", "delete", "dino", "tacos", "1", time.Now()) // who does not own it
	if status, _, body := do(t, "DELETE", s.URL+"/api/container/dino/tacos:1", nil, "Authorization", auth); status != 204 || body != "" {
		t.Errorf("signed: %d %s", status, body)
	}
	if s.Count("delete") != 2 || s.Count("record") != 0 {
		t.Errorf("counts %v", s.Counts())
	}
}

func TestUploads(t *testing.T) {
	s := serve(t, registrytest.Options{NoLimits: true, MaxBody: 2000})
	s.MakeCollection("dino", false, "vsoch")
	now := time.Now()
	put := func(user, name, tag, body string, at time.Time) string {
		t.Helper()
		status, text := upload(t, s, "1", user, "dino", name, tag, body, at)
		return fmt.Sprint(status, " ", text)
	}
	const done = `200 {"message":"Upload Complete"}`
	if got := put("vsoch", "tacos", "v1.sif2", "one", now); !strings.HasPrefix(got, done) {
		t.Fatal(got)
	}
	first, ok := s.Get("dino", "tacos", "v12") // the extension is cut out of the middle
	if !ok || len(first.Version) != 32 {
		t.Fatalf("%+v", first)
	}
	s.RunWorker()
	if now, _ := s.Get("dino", "tacos", "v12"); now.ID != first.ID || !strings.HasPrefix(now.Version, "sha256.") {
		t.Errorf("after the worker: %+v", now)
	}
	put("vsoch", "tacos", "v12", "two", now)
	second, _ := s.Get("dino", "tacos", "v12")
	if second.ID == first.ID {
		t.Error("the number stayed")
	}
	url := fmt.Sprintf("%s/containers/%d/download/%s", s.URL, second.ID, s.Secret("dino"))
	if status, _, body := do(t, "GET", url, nil); status != 200 || body != "two" {
		t.Errorf("%d %s", status, body)
	}
	// The same bytes again: acknowledged and lost.
	if got := put("vsoch", "tacos", "v12", "two", now); !strings.HasPrefix(got, done) {
		t.Error(got)
	}
	third, _ := s.Get("dino", "tacos", "v12")
	url = fmt.Sprintf("%s/containers/%d/download/%s", s.URL, third.ID, s.Secret("dino"))
	if status, _, _ := do(t, "GET", url, nil); status != 500 {
		t.Errorf("the lost image: %d", status)
	}
	if got := put("root", "new", "1", "x", now); !strings.HasPrefix(got, done) {
		t.Error(got)
	}
	if _, ok := s.Get("dino", "new", "1"); ok {
		t.Error("a superuser who is no owner stored something")
	}
	s.Freeze("dino", "tacos", "v12", true)
	if got := put("vsoch", "tacos", "v12", "x", now); !strings.Contains(got, "200") || !strings.Contains(got, "library/tacos:v12@") || !strings.Contains(got, "already exists.") {
		t.Error(got)
	}
	if got := put("vsoch", strings.Repeat("n", 220), "1", "x", now); !strings.Contains(got, "Filename too long!") {
		t.Error(got)
	}
	if got := put("vsoch", "late", "1", "x", now.Add(-time.Hour)); !strings.HasPrefix(got, "500") {
		t.Error(got)
	}
	if got := put("vsoch", "big", "1", strings.Repeat("x", 2000), now); !strings.HasPrefix(got, "413") {
		t.Error(got)
	}
	chunked := struct{ io.Reader }{strings.NewReader("--x--\r\n")} // of no known length
	if status, _, _ := do(t, "POST", s.URL+"/upload", chunked, "Content-Type", "multipart/form-data; boundary=x"); status != 400 {
		t.Errorf("chunked: %d", status)
	}
	if status, _, _ := do(t, "POST", s.URL+"/upload", strings.NewReader("--x--\r\n"), "Content-Type", "multipart/form-data; boundary=x", "Cookie", "csrftoken=x"); status != 302 {
		t.Errorf("as a browser: %d", status)
	}
}

func TestLimits(t *testing.T) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s := serve(t, registrytest.Options{Now: func() time.Time { return at }})
	add(t, s, "dino", "tacos", "latest", "x")
	record := func(header ...string) (int, http.Header, string) {
		return do(t, "GET", s.URL+"/api/container/dino/tacos", nil, header...)
	}
	for n := range 50 {
		if status, _, _ := record(); status != 200 {
			t.Fatalf("record %d: %d", n, status)
		}
	}
	if status, h, body := record("Authorization", "Token "+token); status != 403 || h.Get("Content-Type") != "text/html" || !strings.Contains(body, "403 Forbidden") {
		t.Errorf("record 51: %d %s", status, body)
	}
	for n := range 50 {
		if status, _, _ := do(t, "GET", s.URL+"/api/collections/", nil); status != 200 {
			t.Fatalf("list %d: %d", n, status)
		}
	}
	status, h, body := do(t, "GET", s.URL+"/api/collections/", nil)
	if status != 429 || h.Get("Retry-After") != "86400" || !strings.Contains(body, "throttled") {
		t.Errorf("API request 101: %d %v %s", status, h, body)
	}
	if status, _, _ := do(t, "GET", s.URL+"/api/collections/", nil, "Authorization", "Token "+token); status != 200 {
		t.Errorf("with a token: %d", status)
	}
	at = at.Add(25 * time.Hour)
	if status, _, _ := record(); status != 200 {
		t.Errorf("the next day: %d", status)
	}
}

func TestDownloadsAreCounted(t *testing.T) {
	at := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	s := serve(t, registrytest.Options{Now: func() time.Time { return at }, ContainerWeekly: 2})
	img := add(t, s, "dino", "tacos", "latest", "x")
	url := fmt.Sprintf("%s/containers/%d/download/%s", s.URL, img.ID, s.Secret("dino"))
	_, _, before := do(t, "GET", s.URL+"/api/container/dino/tacos", nil)
	at = at.Add(time.Minute)
	if status, h, _ := do(t, "HEAD", url, nil); status != 200 || h.Get("Content-Length") != "1" {
		t.Errorf("HEAD: %d %v", status, h)
	}
	_, _, after := do(t, "GET", s.URL+"/api/container/dino/tacos", nil)
	if !strings.Contains(before, "2026-01-01T06:00:00.000000-06:00") || !strings.Contains(after, "2026-01-01T06:01:00.000000-06:00") {
		t.Errorf("add_date: %s, then %s", before, after)
	}
	do(t, "GET", url, nil)
	if status, _, body := do(t, "GET", url, nil); status != 403 || body != "" {
		t.Errorf("download 3: %d %q", status, body)
	}
	if status, _, body := do(t, "GET", s.URL+"/api/container/dino/tacos", nil); status != 200 || strings.TrimSpace(body) != "429" {
		t.Errorf("record: %d %s", status, body)
	}
	if sent, _ := s.Bytes(); sent != 1 {
		t.Errorf("%d bytes were sent", sent)
	}
}
