package httpindex

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/secrets"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ref(s string) backends.Ref {
	r, _, err := backends.ParseRef(s)
	if err != nil {
		panic(err)
	}
	return r
}

// TestLayout: every way to lay files out, and which file counts.
func TestLayout(t *testing.T) {
	f := newFolder(t)
	for name, data := range map[string]string{
		"loose:1.sif": "loose", "lab/tool:1.simg": "simg", "lab/tool:1.sif": "sif", "lab/other.img": "no tag",
		"lab/depot:2.1--h_0": "bare", "lab/README.md": "not", "lab/deep/er/x:1.img": "deep", "library/in:1.sif": "in", "library/loose:1.sif": "wins",
		"docs/readme.txt": "not",
	} {
		must(t, f.put(name, []byte(data)))
	}
	base, requests := goServer(t, f)
	b, _ := dialTest(t, base, nil)
	defer func() { _ = b.Close() }()
	if got := collections(t, b); got != "library lab lab/deep/er" {
		t.Errorf("collections %q", got)
	}
	before := requests()
	got := map[string]string{}
	for _, c := range []string{"library", "lab", "lab/deep/er", "docs"} {
		for r, rec := range images(t, b, c) {
			got[r.String()] = rec.Attributes["path"]
		}
	}
	if n := requests() - before; n != 5 {
		t.Errorf("listing four collections, one of them in two places, took %d requests", n)
	}
	want := map[string]string{
		"library/loose:1": "library/loose:1.sif", "library/in:1": "library/in:1.sif", "lab/tool:1": "lab/tool:1.simg", "lab/other:latest": "lab/other.img",
		"lab/depot:2.1--h_0": "lab/depot:2.1--h_0", "lab/deep/er/x:1": "lab/deep/er/x:1.img",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v", got)
	}
	for name, path := range want {
		before := requests()
		rec, err := b.Stat(t.Context(), ref(name))
		if err != nil || rec.Attributes["path"] != path || rec.URL != base+"/"+path {
			t.Errorf("Stat %s: %+v, %v", name, rec, err)
		}
		if n := requests() - before; n != 1 {
			t.Errorf("Stat %s after a listing took %d requests", name, n)
		}
		before = requests()
		st, err := b.Open(t.Context(), rec)
		must(t, err)
		data, err := io.ReadAll(st)
		_ = st.Close()
		if want, _ := os.ReadFile(filepath.Join(f.path, path)); err != nil || string(data) != string(want) || requests()-before != 1 {
			t.Errorf("%s: %q, %v, %d requests", name, data, err, requests()-before)
		}
	}
	// Without a listing the spellings are tried in turn.
	fresh, _ := dialTest(t, base, nil)
	defer func() { _ = fresh.Close() }()
	if rec, err := fresh.Stat(t.Context(), ref("lab/other")); err != nil || rec.Attributes["path"] != "lab/other.img" {
		t.Errorf("%+v, %v", rec, err)
	}
	if _, err := fresh.Stat(t.Context(), backends.Ref{Collection: "lab", Image: "deep", Tag: "latest"}); !errors.Is(err, backends.NotFound) {
		t.Errorf("a directory as an image: %v", err)
	}
}

// TestListedVersion: a record that only a listing showed can be read, and
// goes stale; and a listing takes over what Stat found.
func TestListedVersion(t *testing.T) {
	for _, path := range []string{"/", "/json/", "/rounded/", "/noetag/"} {
		t.Run(path, func(t *testing.T) {
			f := newFolder(t)
			must(t, f.put("lab/tool:1.sif", []byte("first")))
			base := nginx(t, f) + path
			b, _ := dialTest(t, base, nil)
			defer func() { _ = b.Close() }()
			r := ref("lab/tool:1")
			listed := images(t, b, "lab")[r]
			if listed.Version == "" || listed.Full || listed.Version != images(t, b, "lab")[r].Version {
				t.Fatalf("listed %+v", listed)
			}
			read := func(rec backends.Record) (string, error) {
				st, err := b.Open(t.Context(), rec)
				if err != nil {
					return "", err
				}
				defer func() { _ = st.Close() }()
				data, err := io.ReadAll(st)
				return string(data), err
			}
			part := func(rec backends.Record) (string, error) {
				st, err := b.(backends.RangeOpener).OpenRange(t.Context(), rec, 1, 3)
				if err != nil {
					return "", err
				}
				defer func() { _ = st.Close() }()
				data, err := io.ReadAll(st)
				return string(data), err
			}
			if got, err := read(listed); err != nil || got != "first" {
				t.Errorf("reading a listed record: %q, %v", got, err)
			}
			if got, err := part(listed); err != nil || got != "irs" {
				t.Errorf("a range of a listed record: %q, %v", got, err)
			}
			full, err := b.Stat(t.Context(), r)
			must(t, err)
			if !full.Full || full.Size != 5 || full.Created.IsZero() {
				t.Errorf("full %+v", full)
			}
			if again := images(t, b, "lab")[r]; again.Version != full.Version {
				t.Errorf("the listing says %q, Stat said %q", again.Version, full.Version)
			}
			if path == "/noetag/" != strings.HasPrefix(full.Version, "lm-") {
				t.Errorf("version %q", full.Version)
			}

			f.last = f.last.Add(7 * time.Minute) // in another minute, and not by a time zone
			must(t, f.put("lab/tool:1.sif", []byte("other")))
			for _, rec := range []backends.Record{listed, full} {
				if _, err := read(rec); !errors.Is(err, backends.Stale) {
					t.Errorf("Open of %s: %v", rec.Version, err)
				}
				if _, err := part(rec); !errors.Is(err, backends.Stale) {
					t.Errorf("OpenRange of %s: %v", rec.Version, err)
				}
			}
			if now := images(t, b, "lab")[r]; now.Version == listed.Version || now.Version == full.Version {
				t.Errorf("the image was replaced, the listing still says %q", now.Version)
			}
		})
	}
}

func TestNoRanges(t *testing.T) {
	f := newFolder(t)
	must(t, f.put("lab/tool:1.sif", []byte("bytes")))
	b, _ := dialTest(t, nginx(t, f)+"/norange/", nil)
	defer func() { _ = b.Close() }()
	rec, err := b.Stat(t.Context(), ref("lab/tool:1"))
	must(t, err)
	if _, err := b.(backends.RangeOpener).OpenRange(t.Context(), rec, 1, 2); !errors.Is(err, backends.Unsupported) {
		t.Errorf("got %v", err)
	}
}

// TestCredentials: asked for, sent, and never shown.
func TestCredentials(t *testing.T) {
	f := newFolder(t)
	must(t, f.put("lab/tool:1.sif", []byte("bytes")))
	base := nginx(t, f) + "/private/"
	anonymous, _ := dialTest(t, base, nil)
	defer func() { _ = anonymous.Close() }()
	if _, err := anonymous.Stat(t.Context(), ref("lab/tool:1")); !errors.Is(err, backends.Denied) {
		t.Errorf("without a password: %v", err)
	}
	for _, err := range anonymous.Collections(t.Context()) {
		if !errors.Is(err, backends.Denied) {
			t.Errorf("without a password: %v", err)
		}
	}
	within := strings.Replace(base, "http://", "http://user:canary-http-password@", 1)
	b, log := dialTest(t, within, nil)
	defer func() { _ = b.Close() }()
	rec, err := b.Stat(t.Context(), ref("lab/tool:1"))
	must(t, err)
	shown, err := json.Marshal(rec) // Record has its Ref's String
	must(t, err)
	if strings.Contains(string(shown)+log.String(), "canary") {
		t.Error("the password is shown")
	}
	if !strings.Contains(log.String(), "without encryption") {
		t.Error("nothing says that the password is sent without encryption")
	}
}

// hostile serves what a test makes up.
func hostile(t *testing.T, h http.HandlerFunc) backends.Backend {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	b, _ := dialTest(t, s.URL, nil)
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func TestWalkIsBounded(t *testing.T) {
	var asked atomic.Int32
	// A link that leads to its own directory, and an image in each.
	b := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, `<pre><a href="loop/">loop/</a> <a href="a.sif">a.sif</a></pre>`)
	})
	if got := strings.Fields(collections(t, b)); len(got) != maxDepth+1 || asked.Load() != maxDepth+1 {
		t.Errorf("%d collections by %d requests", len(got), asked.Load())
	}
	wide := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		for i := range maxDirs + 1 {
			_, _ = fmt.Fprintf(w, `<pre><a href="d%d/">d</a>`, i)
		}
	})
	var err error
	for _, err = range wide.Collections(t.Context()) {
		continue
	}
	if !errors.Is(err, backends.Unsupported) || backends.HintOf(err) == "" {
		t.Errorf("too many directories: %v", err)
	}
}

func TestWalkPassesClosedDoors(t *testing.T) {
	b := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		switch r.URL.Path {
		case "/":
			_, _ = io.WriteString(w, `<pre><a href="closed/">c</a><a href="gone/">g</a><a href="page/">p</a><a href="open/">o</a>`)
		case "/closed/":
			w.WriteHeader(http.StatusForbidden)
		case "/gone/":
			w.WriteHeader(http.StatusNotFound)
		case "/page/":
			_, _ = io.WriteString(w, "<p>welcome")
		case "/open/":
			_, _ = io.WriteString(w, `<pre><a href="a.sif">a</a><a href="broken/">b</a>`)
		}
	})
	if got := collections(t, b); got != "open" {
		t.Errorf("collections %q", got)
	}
	broken := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		if r.URL.Path != "/" {
			w.WriteHeader(http.StatusNotImplemented + 100) // no kind of "not for you"
			return
		}
		_, _ = io.WriteString(w, `<pre><a href="broken/">b</a>`)
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second) // it is tried again before it fails
	defer cancel()
	var err error
	for _, err = range broken.Collections(ctx) {
		continue
	}
	if err == nil {
		t.Error("half a walk passes for a whole one")
	}
}

// TestPagesAreNoImages: servers that answer everything with a page.
func TestPagesAreNoImages(t *testing.T) {
	b := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, "<p>not found, says status 200")
	})
	if _, err := b.Stat(t.Context(), ref("lab/tool:1")); !errors.Is(err, backends.NotFound) {
		t.Errorf("Stat: %v", err)
	}
	if _, err := b.Open(t.Context(), backends.Record{Ref: ref("lab/tool:1"), Version: "unknown"}); !errors.Is(err, backends.NotFound) {
		t.Errorf("Open: %v", err)
	}
	for _, err := range b.Images(t.Context(), "lab") {
		if !errors.Is(err, backends.Unsupported) || backends.HintOf(err) == "" {
			t.Errorf("Images: %v", err)
		}
	}
}

// TestNoHead: a server that knows GET alone.
func TestNoHead(t *testing.T) {
	b := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		if r.URL.Path != "/lab/tool:1.sif" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = io.WriteString(w, "bytes")
	})
	rec, err := b.Stat(t.Context(), ref("lab/tool:1"))
	if err != nil || rec.Size != 5 || rec.Version != "size-5" {
		t.Errorf("%+v, %v", rec, err)
	}
	st, err := b.Open(t.Context(), rec)
	must(t, err)
	data, err := io.ReadAll(st)
	_ = st.Close()
	if err != nil || string(data) != "bytes" {
		t.Errorf("%q, %v", data, err)
	}
}

// TestListingAfterStat: a listing shows Stat's version until it shows a change.
func TestListingAfterStat(t *testing.T) {
	at := time.Date(2026, 11, 4, 10, 20, 30, 0, time.UTC)
	r := ref("lab/tool:1")
	shown := func(minutes int) found {
		return found{path: "lab/tool:1.sif", row: row{name: "tool:1.sif", size: 5, when: at.Truncate(time.Minute).Add(time.Duration(minutes) * time.Minute)}}
	}
	stated := func() (*backend, string) {
		b := &backend{base: mustParse("http://h/"), forms: map[backends.Ref]int{}, seen: map[backends.Ref]memory{}}
		return b, b.remember(r, "lab/tool:1.sif", facts{etag: `"x"`, modified: at, size: 5}, row{}).Version
	}
	b, version := stated()
	for range 2 {
		if got := b.recordOf(r, shown(60)); got.Version != version { // another time zone
			t.Errorf("the same image: %q, want %q", got.Version, version)
		}
	}
	if got := b.recordOf(r, shown(75)); got.Version == version {
		t.Error("another time, though it could be a time zone, is a change once a time was seen")
	}
	if got := b.recordOf(r, shown(60)); got.Version == version {
		t.Error("after a change the old version came back")
	}
	b, version = stated()
	if got := b.recordOf(r, shown(1)); got.Version == version {
		t.Error("the first listing shows another minute than Stat saw")
	}
}

// TestStrangeAnswerIsNoAbsence: another spelling does not make good for it.
func TestStrangeAnswerIsNoAbsence(t *testing.T) {
	b := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, ".simg") {
			w.WriteHeader(http.StatusTeapot)
		}
	})
	if rec, err := b.Stat(t.Context(), ref("lab/tool:1")); err == nil {
		t.Errorf("got %+v", rec)
	}
}

func TestDial(t *testing.T) {
	for location, ok := range map[string]bool{
		"https://h/x": true, "http://h": true, "https://u:canary@h/x/": true,
		"": false, "h/x": false, "ftp://h": false, "https://": false, "https://h/?canary": false, "https://h/#canary": false, "https://canary:x\x7f@h": false,
	} {
		b, err := Driver().Dial(t.Context(), backends.Config{Location: location, Settings: secrets.Fixed("http", nil), Log: slog.New(slog.DiscardHandler), Now: time.Now})
		if (err == nil) != ok {
			t.Errorf("%q: %v", location, err)
		}
		if err != nil && (backends.KindOf(err) != backends.Invalid || strings.Contains(err.Error()+backends.HintOf(err), "canary")) {
			t.Errorf("%q: %v", location, err)
		}
		if b != nil {
			_, tree := b.(backends.TreeLister)
			if tree {
				t.Error("a tree without a list")
			}
			_ = b.Close()
		}
	}
}

// TestListIsAskedSparingly: Stat asks whether the list changed, and reads it
// again only then.
func TestListIsAskedSparingly(t *testing.T) {
	f := newFolder(t)
	must(t, f.put("lab/tool:1.sif", []byte("bytes")))
	sum := fmt.Sprintf("%064x", 1)
	must(t, f.put("list.txt", []byte("lab/tool:1.sif\t5\t"+sum+"\n")))
	var got []string
	files := http.FileServer(http.Dir(f.path))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.Method+" "+r.URL.Path)
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	b, _ := dialTest(t, s.URL, map[string]string{"SREGISTRY_HTTP_LIST": "list.txt"})
	defer func() { _ = b.Close() }()
	asked := func(want string) {
		t.Helper()
		if s := strings.Join(got, ", "); s != want {
			t.Errorf("asked %s; want %s", s, want)
		}
		got = nil
	}
	if c := collections(t, b); c != "lab" {
		t.Errorf("collections %q", c)
	}
	asked("GET /list.txt")
	for range 2 {
		rec, err := b.Stat(t.Context(), ref("lab/tool:1"))
		if err != nil || rec.Digest.Hex != sum {
			t.Errorf("%+v, %v", rec, err)
		}
		asked("HEAD /list.txt, HEAD /lab/tool:1.sif")
	}
	must(t, f.put("list.txt", []byte("lab/tool:1.sif\t99\t"+sum+"\n")))
	rec, err := b.Stat(t.Context(), ref("lab/tool:1"))
	if err != nil || !rec.Digest.IsZero() || rec.Size != 5 {
		t.Errorf("a list that is about another file: %+v, %v", rec, err)
	}
	asked("HEAD /list.txt, GET /list.txt, HEAD /lab/tool:1.sif")
}
