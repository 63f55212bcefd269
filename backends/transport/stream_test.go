package transport

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

// raw answers every connection with the same bytes, whatever is asked.
func raw(t testing.TB, text string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = http.ReadRequest(bufio.NewReader(conn))
			_, _ = io.WriteString(conn, text)
			_ = conn.Close()
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return "http://" + l.Addr().String()
}

func TestStreamLength(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for _, tt := range []struct {
		name, answer string
		body         string
		size         int64
		kind         backends.Kind
	}{
		{"whole", ok + "Content-Length: 5\r\nETag: \"v\"\r\n\r\n12345", "12345", 5, 0},
		{"empty", ok + "Content-Length: 0\r\n\r\n", "", 0, 0},
		{"short", ok + "Content-Length: 9\r\n\r\n12345", "12345", 9, backends.Unavailable},
		{"chunked", ok + "Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n\r\n", "12345", backends.UnknownSize, 0},
		{"cut chunks", ok + "Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n", "12345", backends.UnknownSize, backends.Unavailable},
		{"cut in a chunk", ok + "Transfer-Encoding: chunked\r\n\r\n9\r\n12345", "12345", backends.UnknownSize, backends.Unavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			base := raw(t, tt.answer)
			c, _ := newTest(t, base, nil, Options{})
			st, err := c.Stream(t.Context(), Request{Op: "open", Ref: ref(), URL: parse(t, base)})
			if err != nil {
				t.Fatal(err)
			}
			if st.Size != tt.size || (tt.name == "whole") != (st.Validator == `"v"`) {
				t.Errorf("size %d, validator %q", st.Size, st.Validator)
			}
			got, err := io.ReadAll(st)
			if string(got) != tt.body {
				t.Errorf("got %q", got)
			}
			if tt.kind != 0 {
				wantKind(t, err, tt.kind)
			} else if err != nil {
				t.Error(err)
			}
			_, again := st.Read(make([]byte, 1))
			if again == nil || (tt.kind != 0 && again == io.EOF) {
				t.Errorf("reading on gave %v", again)
			}
			if err := errors.Join(st.Close(), st.Close()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestStreamRefuses(t *testing.T) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write(make([]byte, 64<<20))
	_ = z.Close()
	for _, tt := range []struct {
		name, answer string
		kind         backends.Kind
	}{
		{"part", "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-4/9\r\nContent-Length: 5\r\n\r\n12345", backends.Corrupt},
		{"nothing", "HTTP/1.1 204 No Content\r\n\r\n", backends.Corrupt},
		{"packed", fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", packed.Len(), packed.String()), backends.Unavailable},
		{"huge header", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 3<<20) + "\r\n\r\n", backends.Unavailable},
		{"garbage", "hello\r\n\r\n", backends.Unavailable},
		{"hangs up", "", backends.Unavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			base := raw(t, tt.answer)
			c, _ := newTest(t, base, nil, Options{})
			_, err := c.Stream(t.Context(), Request{Op: "open", Ref: ref(), URL: parse(t, base)})
			wantKind(t, err, tt.kind)
			if tt.name != "part" && tt.name != "nothing" {
				_, err = get(t, c, base)
				wantKind(t, err, tt.kind)
			}
		})
	}
	base := raw(t, "HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n"+strings.Repeat("x", 1001))
	c, _ := newTest(t, base, nil, Options{})
	_, _, _, err := c.Do(t.Context(), Request{Op: "get", Ref: ref(), URL: parse(t, base), MaxBody: 1000})
	wantKind(t, err, backends.Unavailable)
	if _, _, body, err := c.Do(t.Context(), Request{Op: "get", URL: parse(t, base), MaxBody: 1001}); err != nil || len(body) != 1001 {
		t.Errorf("a body just as long as allowed: %d, %v", len(body), err)
	}
}

// TestRange asks for 4 bytes at 10 of version "v".
func TestRange(t *testing.T) {
	const date, later = "Mon, 02 Jan 2006 15:04:05 GMT", "Mon, 02 Jan 2006 15:04:06 GMT"
	for _, tt := range []struct {
		name      string
		status    int
		header    string // "Key: value" separated by |
		body      string
		validator string
		kind      backends.Kind
	}{
		{"right", 206, `Content-Range: bytes 10-13/20|ETag: "v"`, "abcd", `"v"`, 0},
		{"total not told", 206, `Content-Range: bytes 10-13/*|ETag: "v"`, "abcd", `"v"`, 0},
		{"no pin", 206, `Content-Range: bytes 10-13/20`, "abcd", "", 0},
		{"date", 206, `Content-Range: bytes 10-13/20|Last-Modified: ` + date, "abcd", date, 0},
		{"later date", 206, `Content-Range: bytes 10-13/20|Last-Modified: ` + later, "abcd", date, backends.Stale},
		{"other version", 206, `Content-Range: bytes 10-13/20|ETag: "w"`, "abcd", `"v"`, backends.Stale},
		{"weak version", 206, `Content-Range: bytes 10-13/20|ETag: W/"v"`, "abcd", `"v"`, backends.Stale},
		{"version not told", 206, `Content-Range: bytes 10-13/20`, "abcd", `"v"`, backends.Unsupported},
		{"whole", 200, `ETag: "v"`, "abcd", `"v"`, backends.Unsupported},
		{"whole, other version", 200, `ETag: "w"`, "abcd", `"v"`, backends.Stale},
		{"whole, no pin", 200, ``, "abcd", "", backends.Unsupported},
		{"precondition", 412, ``, "", `"v"`, backends.Stale},
		{"beyond the end", 416, ``, "", `"v"`, backends.Stale},
		{"other start", 206, `Content-Range: bytes 9-12/20|ETag: "v"`, "abcd", `"v"`, backends.Corrupt},
		{"other end", 206, `Content-Range: bytes 10-12/20|ETag: "v"`, "abc", `"v"`, backends.Corrupt},
		{"end before the body's", 206, `Content-Range: bytes 10-12/20|ETag: "v"`, "abcd", `"v"`, backends.Corrupt},
		{"no bounds", 206, `ETag: "v"`, "abcd", `"v"`, backends.Corrupt},
		{"nonsense", 206, `Content-Range: bytes 10-13/5|ETag: "v"`, "abcd", `"v"`, backends.Corrupt},
		{"other length", 206, `Content-Range: bytes 10-13/20|ETag: "v"|Content-Length: 5`, "abcde", `"v"`, backends.Corrupt},
		{"parts", 206, `Content-Type: multipart/byteranges; boundary=x|ETag: "v"`, "abcd", `"v"`, backends.Corrupt},
		{"gone", 404, ``, "", `"v"`, backends.NotFound},
	} {
		t.Run(tt.name, func(t *testing.T) {
			base := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Range") != "bytes=10-13" || r.Header.Get("Accept-Encoding") != "identity" {
					t.Errorf("asked with %v", r.Header)
				}
				if pin := r.Header.Get("If-Match") + r.Header.Get("If-Unmodified-Since"); pin != tt.validator {
					t.Errorf("pinned to %q", pin)
				}
				for line := range strings.SplitSeq(tt.header, "|") {
					if key, value, ok := strings.Cut(line, ": "); ok {
						w.Header().Set(key, value)
					}
				}
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, tt.body)
			})
			c, _ := newTest(t, base, nil, Options{})
			st, err := c.Range(t.Context(), Request{Op: "open", Ref: ref(), URL: parse(t, base)}, 10, 4, tt.validator)
			if tt.kind != 0 {
				wantKind(t, err, tt.kind)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(st)
			if err != nil || string(got) != "abcd" || (st.Size != 20 && tt.name != "total not told") {
				t.Errorf("got %q of %d, %v", got, st.Size, err)
			}
			_ = st.Close()
		})
	}
	c, _ := newTest(t, "http://h", nil, Options{})
	for _, r := range [][2]int64{{-1, 1}, {0, 0}, {0, -1}, {1 << 62, 1 << 62}} {
		_, err := c.Range(t.Context(), Request{Op: "open", Ref: ref(), URL: parse(t, "http://h")}, r[0], r[1], "")
		wantKind(t, err, backends.Invalid)
	}
}

// TestRangeLength: chunked ranges have no length but the one that was asked for.
func TestRangeLength(t *testing.T) {
	head := "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 10-13/20\r\nTransfer-Encoding: chunked\r\n\r\n"
	for body, kind := range map[string]backends.Kind{
		"4\r\nabcd\r\n0\r\n\r\n":           0,
		"3\r\nabc\r\n0\r\n\r\n":            backends.Unavailable,
		"5\r\nabcde\r\n0\r\n\r\n":          backends.Corrupt,
		"4\r\nabcd\r\n1\r\ne\r\n0\r\n\r\n": backends.Corrupt,
		"4\r\nabcd\r\n":                    backends.Unavailable,
	} {
		base := raw(t, head+body)
		c, _ := newTest(t, base, nil, Options{})
		st, err := c.Range(t.Context(), Request{Op: "open", Ref: ref(), URL: parse(t, base)}, 10, 4, "")
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(st)
		if len(got) > 4 {
			t.Errorf("%q: got %q", body, got)
		}
		if kind != 0 {
			wantKind(t, err, kind)
		} else if err != nil || string(got) != "abcd" {
			t.Errorf("%q: got %q, %v", body, got, err)
		}
		_ = st.Close()
	}
}

// TestConnectionsAreUsedAgain: exact ranges cost no new connection each.
func TestConnectionsAreUsedAgain(t *testing.T) {
	var remote sync.Map
	var n atomic.Int32
	base := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if _, had := remote.LoadOrStore(r.RemoteAddr, true); !had {
			n.Add(1)
		}
		http.ServeContent(w, r, "x", time.Unix(1e9, 0), strings.NewReader(strings.Repeat("x", 1000)))
	})
	c, _ := newTest(t, base, nil, Options{})
	for off := range int64(20) {
		st, err := c.Range(t.Context(), Request{Op: "open", URL: parse(t, base)}, off, 100, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(st, make([]byte, 100)); err != nil { // and no further
			t.Fatal(err)
		}
		_ = st.Close()
	}
	if n.Load() != 1 {
		t.Errorf("%d connections for 20 ranges one after the other", n.Load())
	}
}

func TestUpload(t *testing.T) {
	var tries atomic.Int32
	base := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if tries.Add(1) == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintf(w, "%s %d %s", r.Method, r.ContentLength, body)
	})
	c, _ := newTest(t, base, nil, Options{})
	var sent []int64
	_, _, body, err := c.Upload(t.Context(), Request{Op: "push", URL: parse(t, base)}, newSource("image"), func(n int64) { sent = append(sent, n) })
	if err != nil || string(body) != "PUT 5 image" || tries.Load() != 2 {
		t.Errorf("got %q, %v after %d tries", body, err, tries.Load())
	}
	if len(sent) != 2 || sent[1] != 5 {
		t.Errorf("reported %v", sent)
	}
	if _, _, body, err = c.Upload(t.Context(), Request{Op: "push", URL: parse(t, base)}, newSource(""), nil); err != nil || string(body) != "PUT 0 " {
		t.Errorf("an empty body: %q, %v", body, err)
	}
}

func TestHead(t *testing.T) {
	base := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/known" {
			w.Header().Set("Content-Length", "12345")
		}
		w.Header().Set("ETag", `"v"`)
		if r.URL.Path == "/unknown" {
			w.(http.Flusher).Flush()
		}
	})
	c, _ := newTest(t, base, nil, Options{})
	for path, want := range map[string]int64{"/known": 12345, "/unknown": backends.UnknownSize} {
		h, size, err := c.Head(t.Context(), Request{Op: "stat", URL: parse(t, base+path)})
		if err != nil || size != want || StrongETag(h) != `"v"` {
			t.Errorf("%s: %d, %v, %v", path, size, h, err)
		}
	}
}

func TestStrongETag(t *testing.T) {
	for tag, want := range map[string]string{
		`"a"`: `"a"`, `W/"a"`: "", "a": "", `""`: "", `"a`: "", `"a"b"`: "", "\"a b\"": "", "\"a\x01\"": "", "": "",
	} {
		if got := StrongETag(http.Header{"Etag": {tag}}); got != want {
			t.Errorf("%q: %q", tag, got)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{
		"bytes 0-4/5", "bytes 10-13/*", "BYTES 1-2/3", "bytes 5-4/9", "bytes */5", "bytes 0-9223372036854775807/*",
		"bytes 0-9223372036854775808/*", "bytes -1-2/3", "bytes 0 - 1/2", "bytes 0-1/1", "", "bytes 0-0/1 ", "items 0-1/2", "bytes +0-1/2",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		first, last, total, ok := parseContentRange(s)
		if !ok {
			return
		}
		if first < 0 || last < first || total != backends.UnknownSize && last >= total {
			t.Fatalf("%q gave %d-%d/%d", s, first, last, total)
		}
		size := "*"
		if total >= 0 {
			size = fmt.Sprint(total)
		}
		again := fmt.Sprintf("bytes %d-%d/%s", first, last, size)
		a, b, c, ok := parseContentRange(again)
		if !ok || a != first || b != last || c != total {
			t.Fatalf("%q gave %d-%d/%d, which reads back otherwise", s, first, last, total)
		}
	})
}

func TestContentRange(t *testing.T) {
	for s, want := range map[string]bool{
		"bytes 0-4/5": true, "bytes 0-0/1": true, "bytes 10-13/*": true, "bytes 0-9223372036854775807/*": true,
		"bytes 0-5/5": false, "bytes 4-3/5": false, "bytes */5": false, "bytes 0-9223372036854775808/*": false, "bytes 0-4": false,
		"0-4/5": false, "bytes=0-4/5": false, "bytes 0-4/": false, "bytes -4/5": false, "bytes +0-4/5": false, "bytes 0-4/5x": false,
	} {
		if _, _, _, ok := parseContentRange(s); ok != want {
			t.Errorf("%q: %v", s, ok)
		}
	}
}
