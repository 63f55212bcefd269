package fs

import (
	"slices"
	"testing"

	"github.com/sregistry/sregistry-fs/backends"
)

func TestTargets(t *testing.T) {
	ref := func(image, tag string) target {
		return target{Ref: backends.Ref{Collection: "vsoch", Image: image, Tag: tag}}
	}
	version := func(t target, v string) target { t.version = v; return t }
	tests := []struct {
		name string
		want []target
	}{
		{"hello:1.2.simg", []target{ref("hello", "1.2"), ref("hello", "1.2.simg")}},
		{"hello:1.2.sif", []target{ref("hello", "1.2"), ref("hello", "1.2.sif")}},
		{"hello:1.2.img", []target{ref("hello", "1.2"), ref("hello", "1.2.img")}},
		{"hello:1.2", []target{ref("hello", "1.2")}},
		{"hello.sif", []target{ref("hello", "latest")}},
		{"hello.simg", []target{ref("hello", "latest")}},
		{"hello@abc.simg", []target{version(ref("hello", "latest"), "abc")}},
		{"hello:1@sha256.aa.simg", []target{version(ref("hello", "1"), "sha256.aa"), version(ref("hello", "1"), "sha256.aa.simg")}},
		{"hello:a:b.simg", []target{ref("hello", "a:b"), ref("hello", "a:b.simg")}},
		{"hello", nil},
		{".hello:1.simg", nil},
		{"hello:1.simg.part", nil},
		{"hello:1.tmp", nil},
		{"hello:1~", nil},
		{":1.simg", nil},
		{"hello:.simg", []target{ref("hello", ".simg")}},
		{"", nil},
		{"..", nil},
	}
	for _, tt := range tests {
		got := targets("vsoch", tt.name)
		if !slices.Equal(got, tt.want) {
			t.Errorf("targets(%q) = %v, want %v", tt.name, got, tt.want)
		}
	}
	if got := targets("", "hello:1.simg"); got != nil {
		t.Errorf("the root holds collections only, got %v", got)
	}
}

// FuzzName: every ref that may be listed comes back from its file name as the
// first reading, and no name yields a ref that may not be listed.
func FuzzName(f *testing.F) {
	for _, s := range [][2]string{{"hello", "latest"}, {"a.sif", "v1.simg"}, {"x", ".simg"}, {"a b", "1+2"}, {"é", "~"}, {"x", "y.part"}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, image, tag string) {
		ref := backends.Ref{Collection: "c/d", Image: image, Tag: tag}
		if ref.Check() == nil {
			got := targets("c/d", ref.FileName())
			if len(got) == 0 || got[0].Ref != ref || got[0].version != "" {
				t.Errorf("%q is listed as %q and read back as %v", ref, ref.FileName(), got)
			}
		}
		for _, got := range targets("c/d", image+":"+tag) {
			if err := got.Check(); err != nil {
				t.Errorf("%q reads as %v: %v", image+":"+tag, got, err)
			}
		}
	})
}

func TestBelow(t *testing.T) {
	all := []string{"a", "a-b", "a/b", "a/b/c", "a/d", "b/x"}
	slices.Sort(all)
	for dir, want := range map[string][]string{"": {"a", "a-b", "b"}, "a": {"b", "d"}, "a/b": {"c"}, "b": {"x"}, "c": nil, "a-b": nil} {
		if got := below(all, dir); !slices.Equal(got, want) {
			t.Errorf("below(%q) = %v, want %v", dir, got, want)
		}
	}
}

func TestInodeNumbers(t *testing.T) {
	if inodeNumber("a", "bc") == inodeNumber("ab", "c") {
		t.Error("parts run into each other")
	}
	if n := inodeNumber("x"); n != inodeNumber("x") || n>>63 != 0 || n < 2 {
		t.Errorf("inode number %#x", n)
	}
}
