package backends

import (
	"errors"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	good := []Ref{
		{},
		{Collection: "vsoch"},
		{Collection: "a/b/c", Image: "hello", Tag: "latest"},
		{Collection: "a", Image: "Ünïcode name", Tag: "1+2~x"},
		{Collection: "a", Image: "x.sif", Tag: ".simg"},
		{Collection: "a", Image: "x", Tag: "a:b"},
		{Collection: "a", Image: "x", Tag: strings.Repeat("t", MaxName-len("x:.simg"))},
	}
	for _, ref := range good[1:] {
		if err := ref.Check(); err != nil {
			t.Errorf("%q: %v", ref, err)
		}
	}
	bad := []Ref{
		{}, // the registry itself is no path
		{Collection: "a//b"},
		{Collection: "/a"},
		{Collection: "a/"},
		{Collection: ".."},
		{Collection: "a/../b"},
		{Collection: ".git"},
		{Collection: "a\x00b"},
		{Collection: "a\nb"},
		{Collection: "a", Tag: "1"},
		{Collection: "a", Image: "x"}, // no tag
		{Collection: "a", Image: "b/c", Tag: "1"},
		{Collection: "a", Image: "x", Tag: "1/2"},
		{Collection: "a", Image: ".x", Tag: "1"},
		{Collection: "a", Image: "x:y", Tag: "1"},
		{Collection: "a", Image: "x@y", Tag: "1"},
		{Collection: "a", Image: "x", Tag: "1@2"},
		{Collection: "a", Image: "x\x1b[31m", Tag: "1"},
		{Collection: "a", Image: "x", Tag: "\u202egmis"},
		{Collection: "a", Image: "x\xff", Tag: "1"},
		{Collection: "a", Image: "x", Tag: "a\u2028b"},
		{Collection: "a", Image: "x", Tag: strings.Repeat("t", MaxName-len("x:.simg")+1)},
		{Collection: strings.Repeat("c", MaxName+1), Image: "x", Tag: "1"},
	}
	for _, ref := range bad {
		if err := ref.Check(); !errors.Is(err, Invalid) {
			t.Errorf("%q: %v, want Invalid", ref, err)
		}
	}
}

func TestParseRef(t *testing.T) {
	tests := []struct {
		in      string
		want    Ref
		version string
	}{
		{"hello", Ref{"library", "hello", "latest"}, ""},
		{"vsoch/hello", Ref{"vsoch", "hello", "latest"}, ""},
		{"vsoch/hello:1.2", Ref{"vsoch", "hello", "1.2"}, ""},
		{"vsoch/hello:1.2.simg", Ref{"vsoch", "hello", "1.2"}, ""},
		{"a/b/hello.sif", Ref{"a/b", "hello", "latest"}, ""},
		{"vsoch/hello:1@sha256:abc", Ref{"vsoch", "hello", "1"}, "sha256:abc"},
		{"vsoch/hello@abc.simg", Ref{"vsoch", "hello", "latest"}, "abc"},
	}
	for _, tt := range tests {
		got, version, err := ParseRef(tt.in)
		if err != nil || got != tt.want || version != tt.version {
			t.Errorf("ParseRef(%q) = %v %q %v, want %v %q", tt.in, got, version, err, tt.want, tt.version)
		}
	}
	for _, in := range []string{"", "/", "vsoch/", ":1", "../x", "a/\x00:1", "vsoch/.hidden:1"} {
		if got, _, err := ParseRef(in); !errors.Is(err, Invalid) {
			t.Errorf("ParseRef(%q) = %v %v, want Invalid", in, got, err)
		}
	}
}

// FuzzParseRef: whatever is accepted may be listed, and reads back as itself.
func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"hello", "a/b/c:1@v", "x.simg", "a/b:c:d", "x:.sif"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, _, err := ParseRef(s)
		if err != nil {
			return
		}
		if err := ref.Check(); err != nil {
			t.Fatalf("ParseRef(%q) = %q, which fails its check: %v", s, ref, err)
		}
		again, _, err := ParseRef(ref.Collection + "/" + ref.FileName())
		if err != nil || again != ref {
			t.Errorf("%q reads back as %q (%v)", ref, again, err)
		}
	})
}

func TestDigest(t *testing.T) {
	hex := strings.Repeat("aB", 32)
	for in, want := range map[string]string{
		"sha256:" + hex:                      "sha256:" + strings.ToLower(hex),
		"SHA256." + hex:                      "sha256:" + strings.ToLower(hex),
		"md5:" + hex[:32]:                    "md5:" + strings.ToLower(hex[:32]),
		hex:                                  "",
		"sha256:" + hex[:62]:                 "",
		"crc32:" + hex[:8]:                   "",
		"sha256:" + strings.Repeat("zz", 32): "",
	} {
		got, ok := ParseDigest(in)
		if got.String() != want || ok != (want != "") {
			t.Errorf("ParseDigest(%q) = %v %v, want %q", in, got, ok, want)
		}
	}
	d, _ := ParseDigest("sha256:" + hex)
	if h := d.NewHash(); h == nil || h.Size() != 32 {
		t.Error("no hash for sha256")
	}
	if (Digest{}).NewHash() != nil || !(Digest{}).IsZero() {
		t.Error("the zero digest is no digest")
	}
}

func TestMatches(t *testing.T) {
	d, _ := ParseDigest("sha256:" + strings.Repeat("ab", 32))
	rec := Record{Version: "42", Word: "sha256." + d.Hex, Digest: d}
	for _, v := range []string{"42", "sha256." + d.Hex, "sha256:" + d.Hex, d.Hex} {
		if !rec.Matches(v) {
			t.Errorf("%q does not match", v)
		}
	}
	for _, v := range []string{"", "4", "md5:" + d.Hex[:32], d.Hex[:10]} {
		if rec.Matches(v) {
			t.Errorf("%q matches", v)
		}
	}
	if (Record{}).Matches("") {
		t.Error("nothing matches nothing")
	}
}
