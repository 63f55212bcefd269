package httpindex

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

func show(rows []row) string {
	var b strings.Builder
	for _, r := range rows {
		kind := "file"
		if r.dir {
			kind = "dir"
		}
		when := "-"
		if !r.when.IsZero() {
			when = r.when.Format("2006-01-02T15:04:05")
		}
		fmt.Fprintf(&b, "%s %q %s %d %q seconds=%v exact=%v\n", kind, r.name, when, r.size, r.sizeText, r.seconds, r.exact)
	}
	return b.String()
}

// TestHTML reads pages as the servers write them, with what they never agree on.
func TestHTML(t *testing.T) {
	for _, tt := range []struct{ server, page, want string }{
		{"nginx", `<html>
<head><title>Index of /img/</title></head>
<body>
<h1>Index of /img/</h1><hr><pre><a href="../">../</a>
<a href="sub/">sub/</a>                                               23-Nov-2026 20:28                   -
<a href="hello%3A1.2.simg">hello:1.2.simg</a>                                     23-Nov-2026 20:28              123456
<a href="a%2Bb%3A100%25.sif">a+b:100%.sif</a>                                       23-Nov-2026 20:28                 12M
<a href="a-name-so-long-that-the-server-cuts-it-and-shows-dots%3A1.sif">a-name-so-long-that-the-server-cuts-it-and-sh..&gt;</a> 01-Jan-2026 00:00  7
</pre><hr></body>
</html>`, `dir "sub" - -1 "" seconds=false exact=false
file "hello:1.2.simg" 2026-11-23T20:28:00 123456 "123456" seconds=false exact=false
file "a+b:100%.sif" 2026-11-23T20:28:00 -1 "12M" seconds=false exact=false
file "a-name-so-long-that-the-server-cuts-it-and-shows-dots:1.sif" 2026-01-01T00:00:00 7 "7" seconds=false exact=false
`},
		{"Apache, preformatted", `<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN">
<html><head><title>Index of /img</title></head><body><h1>Index of /img</h1>
<pre><img src="/icons/blank.gif" alt="Icon "> <a href="?C=N;O=D">Name</a>  <a href="?C=M;O=A">Last modified</a>  <a href="?C=S;O=A">Size</a><hr>
<img src="/icons/back.gif" alt="[PARENTDIR]"> <a href="/">Parent Directory</a>                             -
<img src="/icons/folder.gif" alt="[DIR]"> <a href="sub/">sub/</a>                    2026-11-04 10:20    -
<img src="/icons/unknown.gif" alt="[   ]"> <a href="./hello:1.2.simg">hello:1.2.simg</a>          2026-11-04 10:20  1.2G
<img src="/icons/unknown.gif" alt="[   ]"> <a href="last.sif">last.sif</a>                2026-11-04 10:21  5
<hr></pre><address>Apache/2.4.57 (Debian) Server at example.org Port 80, 2020-01-01 10:00 77</address>
</body></html>`, `dir "sub" - -1 "" seconds=false exact=false
file "hello:1.2.simg" 2026-11-04T10:20:00 -1 "1.2G" seconds=false exact=false
file "last.sif" 2026-11-04T10:21:00 -1 "5" seconds=false exact=false
`},
		{"Apache, table, icons are links", `<html><head><title>Index of /img</title></head><body><table>
<tr><th><a href="?C=N;O=D">Name</a></th><th><a href="?C=M;O=A">Last modified</a></th></tr>
<tr><td><a href="x%20y.img"><img src="/icons/unknown.gif"></a></td><td><a href="x%20y.img">x y.img</a></td><td align="right">2026-11-04 10:20  </td><td align="right">1.2K</td><td>&nbsp;</td></tr>
<tr><td><a href="sub/"><img></a></td><td><a href="sub/">sub/</a></td><td align="right">2026-11-04 10:20  </td><td align="right">  - </td></tr>
</table></body></html>`, `file "x y.img" 2026-11-04T10:20:00 -1 "1.2K" seconds=false exact=false
dir "sub" - -1 "" seconds=false exact=false
`},
		{"Caddy", `<!DOCTYPE html><html><body><h1><a href="/">Folder</a></h1><table>
<thead><tr><th><a href="?sort=name&order=desc">Name</a></th></tr></thead><tbody>
<tr><td></td><td><a href=".."><span class="go-up">Up</span></a></td><td></td></tr>
<tr class="file"><td></td><td><a href="./sub/"><span class="name">sub</span></a></td><td>&mdash;</td><td class="timestamp hideable"><time datetime="2026-11-04T10:20:30Z">11/04/2026 10:20:30 AM +01:00</time></td></tr>
<tr class="file"><td></td><td><a href="./hello:1.2.simg"><svg></svg><span class="name">hello:1.2.simg</span></a></td><td class="size" data-size="1234567"><div class="sizebar-text">1.2 MiB</div></td>
<td class="timestamp hideable"><time datetime="2026-11-04T10:20:30Z">11/04/2026 10:20:30 AM +01:00</time></td></tr>
</tbody></table><footer><a href="https://caddyserver.com">Caddy</a></footer></body></html>`, `dir "sub" - -1 "" seconds=false exact=false
file "hello:1.2.simg" 2026-11-04T10:20:30 1234567 "" seconds=true exact=false
`},
		{"lighttpd", `<html><head><title>Index of /img/</title></head><body><h2>Index of /img/</h2><div class="list"><table><tbody>
<tr class="d"><td class="n"><a href="../">..</a>/</td><td class="m">&nbsp;</td><td class="s">- &nbsp;</td><td class="t">Directory</td></tr>
<tr><td class="n"><a href="hello%3a1.sif">hello:1.sif</a></td><td class="m">2026-Nov-04 10:20:30</td><td class="s">1.2M</td><td class="t">application/octet-stream</td></tr>
</tbody></table></div></body></html>`, `file "hello:1.sif" 2026-11-04T10:20:30 -1 "1.2M" seconds=true exact=false
`},
		{"Python", `<html><head><title>Directory listing for /img/</title></head><body><h1>Directory listing for /img/</h1><hr><ul>
<li><a href="hello%3A1.sif">hello:1.sif</a></li><li><a href="sub/">sub/</a></li><li><a href="z.sif">z.sif</a></li></ul>served 2020-01-01 10:00 77</body></html>`, `file "hello:1.sif" - -1 "" seconds=false exact=false
dir "sub" - -1 "" seconds=false exact=false
file "z.sif" - -1 "" seconds=false exact=false
`},
		{"Go", "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n<a href=\"hello:1.sif\">hello:1.sif</a>\n<a href=\"sub/\">sub/</a>\n</pre>\n", `file "hello:1.sif" - -1 "" seconds=false exact=false
dir "sub" - -1 "" seconds=false exact=false
`},
		{"absolute links", `<h1>Index of /img/</h1><a href="/img/a.sif">a</a> <a href="http://h/img/b.sif">b</a> <a href="//h/img/c.sif">c</a>`, `file "a.sif" - -1 "" seconds=false exact=false
file "b.sif" - -1 "" seconds=false exact=false
file "c.sif" - -1 "" seconds=false exact=false
`},
		{"empty", "<html><head><title>Index of /img/</title></head><body><h1>Index of /img/</h1><hr><pre><a href=\"../\">../</a>\n</pre></body></html>", ""},
	} {
		t.Run(tt.server, func(t *testing.T) {
			rows, err := parseHTML(iotest.OneByteReader(strings.NewReader(tt.page)), mustParse("http://h/img/"))
			if got := show(rows); err != nil || got != tt.want {
				t.Errorf("error %v, got\n%swant\n%s", err, got, tt.want)
			}
		})
	}
	if _, err := parseHTML(strings.NewReader("<html><body><div id=app></div><script>go()</script></body></html>"), mustParse("http://h/img/")); !errors.Is(err, errNoIndex) {
		t.Errorf("a page that is no index: %v", err)
	}
	broken := errors.New("cut")
	page := io.MultiReader(strings.NewReader(`<pre><a href="a.sif">a</a>`), iotest.ErrReader(broken))
	if rows, err := parseHTML(page, mustParse("http://h/img/")); !errors.Is(err, broken) {
		t.Errorf("half a page gave %v, %v", rows, err)
	}
}

func mustParse(s string) *url.URL {
	u, err := url.Parse(s)
	if err != nil {
		panic(err)
	}
	return u
}

func TestJSON(t *testing.T) {
	for _, tt := range []struct{ server, text, want string }{
		{"nginx", `[
{ "name":"sub", "type":"directory", "mtime":"Mon, 23 Nov 2026 20:28:19 GMT" },
{ "name":"hello:1.2.simg", "type":"file", "mtime":"Mon, 23 Nov 2026 20:28:19 GMT", "size":6 },
{ "name":"pipe", "type":"other", "mtime":"Mon, 23 Nov 2026 20:28:19 GMT" }
]`, `dir "sub" - -1 "" seconds=false exact=false
file "hello:1.2.simg" 2026-11-23T20:28:19 6 "" seconds=true exact=true
`},
		{"Caddy", `[{"name":"sub/","size":4096,"url":"./sub/","mod_time":"2026-11-04T10:20:30.123456789Z","mode":2147484141,"is_dir":true,"is_symlink":false},
{"name":"hello:1.sif","size":12,"url":"./hello:1.sif","mod_time":"2026-11-04T11:20:30.9+01:00","mode":420,"is_dir":false,"is_symlink":false}]`, `dir "sub" - -1 "" seconds=false exact=false
file "hello:1.sif" 2026-11-04T10:20:30 12 "" seconds=true exact=true
`},
		{"empty", "[\n]", ""},
		{"Caddy, empty", "null\n", ""},
		{"hostile", `[{"name":"../up.sif","type":"file"},{"name":""},{"name":".."},{"name":"a/b.sif"},{"name":"x.sif","type":"file","size":-5,"mtime":"yesterday"}]`, `file "x.sif" - -1 "" seconds=false exact=false
`},
	} {
		t.Run(tt.server, func(t *testing.T) {
			rows, err := parseJSON(strings.NewReader(tt.text))
			if got := show(rows); err != nil || got != tt.want {
				t.Errorf("error %v, got\n%swant\n%s", err, got, tt.want)
			}
		})
	}
	for _, bad := range []string{"", "{}", `"x"`, `[{"name":"a.sif"}`, `[{"name":"a.sif"},`, `[1]`, `[{"name":5}]`} {
		if rows, err := parseJSON(strings.NewReader(bad)); err == nil {
			t.Errorf("%q gave %v", bad, rows)
		}
	}
}

func TestChild(t *testing.T) {
	for _, tt := range []struct {
		dir, href, name string
		isDir           bool
	}{
		{"http://h/img/", "a.sif", "a.sif", false},
		{"http://h/img/", "./a:1.sif", "a:1.sif", false},
		{"http://h/img/", "a:1.sif", "a:1.sif", false},
		{"http://h/img/", "a%3A1.sif", "a:1.sif", false},
		{"http://h/img/", "sub/", "sub", true},
		{"http://h/img/", "/img/sub/", "sub", true},
		{"http://h/img/", "http://h:80/img/x", "x", false},
		{"http://h/", "x", "x", false},
		{"http://h/a%20b/", "/a b/x", "x", false},
		{"http://h/%61/", "/a/x", "x", false},
		{"http://h/img/", "../", "", false},
		{"http://h/img/", "..", "", false},
		{"http://h/img/", "", "", false},
		{"http://h/img/", ".", "", false},
		{"http://h/img/", "/", "", false},
		{"http://h/img/", "/img", "", false},
		{"http://h/img/", "/other/x", "", false},
		{"http://h/img/", "/imgx", "", false},
		{"http://h/img/", "sub/x", "", false},
		{"http://h/img/", "%2e%2e/", "", false},
		{"http://h/img/", "..%2fx", "", false},
		{"http://h/img/", "a%2fb", "", false},
		{"http://h/img/", ".hidden", "", false},
		{"http://h/img/", "?C=N;O=D", "", false},
		{"http://h/img/", "x?y", "", false},
		{"http://h/img/", "#top", "", false},
		{"http://h/img/", "https://h/img/x", "", false},
		{"http://h/img/", "http://evil/img/x", "", false},
		{"http://h/img/", "//evil/img/x", "", false},
		{"http://h/img/", "javascript:alert(1)", "", false},
		{"http://h/img/", "mailto:a@b", "", false},
		{"http://h/img/", "%zz", "", false},
	} {
		name, isDir, ok := child(mustParse(tt.dir), tt.href)
		if name != tt.name || isDir != tt.isDir || ok != (tt.name != "") {
			t.Errorf("%q at %s: %q, %v, %v", tt.href, tt.dir, name, isDir, ok)
		}
	}
}

// FuzzIndex: whatever a server sends, a name is one entry of the directory.
func FuzzIndex(f *testing.F) {
	f.Add([]byte(`<pre><a href="a%3A1.sif">a</a> 04-Nov-2026 10:20 5`))
	f.Add([]byte(`<table><a href="/img/%2e%2e/"><td data-size="5"><time datetime="2026-11-04T10:20:30Z">`))
	f.Add([]byte(`[{"name":"a:1.sif","size":5,"mtime":"Mon, 23 Nov 2026 20:28:19 GMT"}]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		html, _ := parseHTML(strings.NewReader(string(data)), mustParse("http://h/img/"))
		js, _ := parseJSON(strings.NewReader(string(data)))
		for _, r := range append(html, js...) {
			if r.name == "" || strings.HasPrefix(r.name, ".") || strings.Contains(r.name, "/") || r.size < backends.UnknownSize {
				t.Fatalf("%+v", r)
			}
			if again, ok := parseListed(r.listed()); !ok || again.version() != r.version() {
				t.Fatalf("%+v does not read back from %q", r, r.listed())
			}
		}
	})
}

func TestListFile(t *testing.T) {
	sum := strings.Repeat("ab", 32)
	want := []row{{name: "lab/a:1.sif", size: -1}, {name: "b c.sif", size: 5}, {name: "c%3A1.sif", size: 7}}
	want[2].digest, _ = backends.NewDigest("sha256", sum)
	for name, text := range map[string]string{
		"text": "# images\n\n./lab/a:1.sif\nb c.sif\t5\r\nc%3A1.sif\t7\t" + sum + "\n/abs.sif\n../up.sif\na//b.sif\nx.sif\tfive\nx.sif\t5\tff\n\n",
		"JSON": `  ["lab/a:1.sif", {"path":"b c.sif","size":5}, {"path":"c%3A1.sif","size":7,"sha256":"` + strings.ToUpper(sum) + `"},
			"/abs.sif", "../up.sif", {"path":"x.sif","size":-1}, 5, {}]`,
	} {
		rows, skipped, err := parseList(strings.NewReader(text))
		if err != nil || skipped != 5 || fmt.Sprint(rows) != fmt.Sprint(want) {
			t.Errorf("%s: %v, %d skipped, %v", name, rows, skipped, err)
		}
	}
	for _, bad := range []string{`["a.sif"`, `["a.sif",`, strings.Repeat("x", 100_000)} {
		if rows, _, err := parseList(strings.NewReader(bad)); err == nil {
			t.Errorf("%.20q gave %d rows", bad, len(rows))
		}
	}
	if rows, skipped, err := parseList(strings.NewReader(" \n")); err != nil || len(rows)+skipped != 0 {
		t.Errorf("an empty list: %v, %d, %v", rows, skipped, err)
	}
}

func TestImageOf(t *testing.T) {
	for name, want := range map[string]string{
		"a:1.simg": "a 1", "a:1.sif": "a 1", "a:1.img": "a 1", "a.sif": "a latest", "abyss:2.1.5--h7b50bb2_3": "abyss 2.1.5--h7b50bb2_3",
		"a:b:c.sif": "a b:c", "a:1.sif.simg": "a 1.sif",
		"README": "", "a.txt": "", ":1.sif": "", "a:.sif": "", ".sif": "", ".a:1.sif": "", "a:": "", "a:1.sif.sha256": "", "a:1.tar.gz": "", "a:1.sif~": "",
	} {
		got := ""
		if image, tag, ok := imageOf(name); ok {
			got = image + " " + tag
		}
		if got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
	// What is an image has to be found again, at its own path.
	for _, path := range []string{"a:1", "a:1.sif.simg", "lab/a:1.sif", "a.img", "library/a.sif", "x/y/a:latest"} {
		ref, ok := refOf(path)
		found := false
		for _, c := range candidates(ref) {
			found = found || c == path
			if back, ok := refOf(c); !ok || back != ref {
				t.Errorf("candidate %q of %v is %v", c, ref, back)
			}
		}
		if !ok || !found {
			t.Errorf("%q is %v, looked for at %q", path, ref, candidates(ref))
		}
	}
}

func TestAgrees(t *testing.T) {
	at := func(s string) time.Time {
		u, err := time.Parse("15:04:05", s)
		if err != nil {
			t.Fatal(err)
		}
		return u.AddDate(2026, 0, 0)
	}
	f := facts{modified: at("10:20:30"), size: 5}
	for _, tt := range []struct {
		name string
		r    row
		want bool
	}{
		{"nothing told", row{size: -1}, true},
		{"minute", row{when: at("10:20:00"), size: -1}, true},
		{"minute, other zone", row{when: at("15:50:00"), size: 5}, true},
		{"other minute", row{when: at("10:21:00"), size: 5}, false},
		{"other size", row{when: at("10:20:00"), size: 6}, false},
		{"second", row{when: at("10:20:30"), seconds: true, size: 5}, true},
		{"other second", row{when: at("10:20:31"), seconds: true, size: 5}, false},
		{"exact", row{when: at("10:20:30"), seconds: true, exact: true, size: 5}, true},
		{"exact, an hour off", row{when: at("11:20:30"), seconds: true, exact: true, size: 5}, false},
		{"a day off", row{when: at("10:20:00").AddDate(0, 0, 1), size: 5}, false},
	} {
		if got := tt.r.agrees(f, backends.Digest{}); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}
