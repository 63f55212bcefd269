package all_test

import (
	"bytes"
	"cmp"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module = "github.com/sregistry/sregistry-fs/"
	root   = "../.." // of the repository, seen from this package
)

// rule says what a package may import of ours (without the module's path) and
// of others (a module's path stands for all of it). The standard library is
// open to all but for what never lists. "x/*" is one package below x; a package
// of its own line goes before a pattern.
type rule struct {
	pkg    string
	ours   []string
	others []string
	never  []string // of the standard library, tests included
}

// rules is the table of the house: who may import whom. A package that is not
// in it fails the test, so a new one says here what it is.
func rules() []rule {
	words := func(s string) []string { return strings.Fields(s) }
	return []rule{
		{
			pkg:    "cmd/sregistry-fs",
			ours:   words("backends backends/all backends/imagefile cache fs secrets secrets/login"),
			others: words("github.com/spf13/pflag github.com/spf13/cobra github.com/dustin/go-humanize golang.org/x/sync golang.org/x/sys"),
		},
		{pkg: "cmd/sregistry-fs/bench"},
		{
			pkg: "fs", ours: words("backends backends/imagefile cache"),
			others: words("github.com/hanwen/go-fuse/v2 golang.org/x/sync golang.org/x/sys"), never: words("net/http"),
		},
		{
			pkg: "cache", ours: words("backends backends/imagefile"),
			others: words("go.etcd.io/bbolt golang.org/x/sync golang.org/x/sys"), never: words("net/http"),
		},
		{pkg: "secrets", never: words("net/http")},
		{pkg: "secrets/login", ours: words("secrets"), others: words("golang.org/x/oauth2")},

		{pkg: "backends", ours: words("secrets")},
		{pkg: "backends/all", ours: words("backends backends/*")},
		{pkg: "backends/backendtest", ours: words("backends")},
		{pkg: "backends/mem", ours: words("backends"), never: words("net/http os")},
		{
			pkg: "backends/imagefile", ours: words("backends"), never: words("net net/http"),
			others: words("github.com/sylabs/sif/v2 github.com/klauspost/compress github.com/pierrec/lz4/v4 " +
				"github.com/ulikunitz/xz github.com/mikelolasagasti/xz"),
		},
		{pkg: "backends/imagefile/imagetest", ours: words("backends backends/imagefile backends/imagefile/imagetest/hello"), others: words("github.com/sylabs/sif/v2")},
		{pkg: "backends/imagefile/imagetest/hello"},
		{pkg: "backends/transport", ours: words("backends secrets"), others: words("golang.org/x/sync golang.org/x/net")},
		{pkg: "backends/registry/registrytest"},
		{pkg: "backends/registry/registrytest/pyclient"},
		{pkg: "backends/registry/registrytest/serve", ours: words("backends/registry/registrytest"), others: words("github.com/spf13/pflag")},
		{pkg: "backends/http", ours: words("backends backends/transport secrets"), others: words("golang.org/x/net golang.org/x/sync")},
		{pkg: "backends/*", ours: words("backends backends/transport secrets"), others: words("golang.org/x/sync golang.org/x/sys")},
	}
}

// testSupport is imported by tests and by other test support only.
func testSupport() []string {
	return []string{
		"backends/backendtest", "backends/mem", "backends/imagefile/imagetest", "backends/imagefile/imagetest/hello",
		"backends/registry/registrytest", "backends/registry/registrytest/serve", "backends/registry/registrytest/pyclient",
	}
}

// source is one Go file of the repository.
type source struct {
	name  string // relative to the repository
	test  bool
	lines int
	ast   *ast.File
}

func (s source) pkg() string { return path.Dir(s.name) }

// sources parses every Go file, whatever its build tags.
func sources(t *testing.T) []source {
	t.Helper()
	var out []source
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"):
			return fs.SkipDir
		case d.IsDir() || filepath.Ext(name) != ".go":
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, text, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		out = append(out, source{
			name: filepath.ToSlash(rel), test: strings.HasSuffix(name, "_test.go"),
			lines: bytes.Count(text, []byte("\n")), ast: file,
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 20 {
		t.Fatalf("only %d Go files found below %s", len(out), root)
	}
	return out
}

// matches reports whether pkg is one of names, where "x/*" is any one below x.
func matches(names []string, pkg string) bool {
	return slices.ContainsFunc(names, func(name string) bool {
		above, any := strings.CutSuffix(name, "/*")
		return pkg == name || any && path.Dir(pkg) == above
	})
}

// check gives what is wrong with a file that imports what, or "".
func check(file source, what string) string {
	i := slices.IndexFunc(rules(), func(r rule) bool { return matches([]string{r.pkg}, file.pkg()) })
	if i < 0 {
		return "the package is not in the table of who may import whom"
	}
	r := rules()[i]
	ours, isOurs := strings.CutPrefix(what, module)
	standard := !strings.Contains(strings.Split(what, "/")[0], ".")
	switch {
	case standard:
		if !file.test && slices.Contains(r.never, what) {
			return what + " is not for this package"
		}
	case file.test: // tests may import what they like, within the module's own rules for drivers
	case isOurs:
		if matches(testSupport(), ours) && !matches(testSupport(), file.pkg()) {
			return ours + " is for tests only"
		}
		if !matches(r.ours, ours) {
			return ours + " is not in this package's list"
		}
	default:
		if !slices.ContainsFunc(r.others, func(m string) bool { return what == m || strings.HasPrefix(what, m+"/") }) {
			return what + " is not in this package's list"
		}
	}
	return ""
}

func TestImports(t *testing.T) {
	for _, file := range sources(t) {
		for _, spec := range file.ast.Imports {
			what, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if wrong := check(file, what); wrong != "" {
				t.Errorf("%s: %s", file.name, wrong)
			}
		}
	}
}

// The rules bite: each of these has to be refused, or allowed.
func TestImportRules(t *testing.T) {
	for _, test := range []struct {
		file, what string
		ok         bool
	}{
		{"fs/read.go", module + "cache", true},
		{"fs/read.go", module + "backends/dir", false},
		{"fs/read.go", "net/http", false},
		{"fs/read.go", module + "secrets", false},
		{"fs/read.go", "github.com/hanwen/go-fuse/v2/fuse", true},
		{"cache/blob.go", "github.com/hanwen/go-fuse/v2/fuse", false},
		{"cache/blob.go", module + "backends/mem", false},
		{"cache/blob_test.go", module + "backends/mem", true},
		{"cache/blob.go", module + "fs", false},
		{"backends/ref.go", module + "cache", false},
		{"backends/ref.go", module + "secrets", true},
		{"backends/s3/s3.go", module + "backends/transport", true},
		{"backends/s3/s3.go", module + "backends/registry", false},
		{"backends/s3/s3.go", "golang.org/x/syncthing", false},
		{"backends/all/all.go", module + "backends/s3", true},
		{"backends/all/all.go", module + "cache", false},
		{"backends/all/all.go", module + "backends/mem", false},
		{"secrets/file.go", module + "backends", false},
		{"secrets/file.go", "github.com/spf13/pflag", false},
		{"cmd/sregistry-fs/main.go", module + "backends/dir", false},
		{"util/strings.go", "strings", false},
	} {
		wrong := check(source{name: test.file, test: strings.HasSuffix(test.file, "_test.go")}, test.what)
		if (wrong == "") != test.ok {
			t.Errorf("%s imports %s: %q", test.file, test.what, cmp.Or(wrong, "allowed"))
		}
	}
}

// A file is one idea and can be read in one sitting; nothing happens before main.
func TestFiles(t *testing.T) {
	const most = 600
	for _, file := range sources(t) {
		if file.lines > most && !file.test {
			t.Errorf("%s has %d lines, more than %d", file.name, file.lines, most)
		}
		for _, decl := range file.ast.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s has an init function", file.name)
			}
		}
	}
}

// The top level is what a newcomer sees first; it stays short.
func TestTopLevel(t *testing.T) {
	allowed := strings.Fields(`cmd fs backends cache secrets docs go.mod go.sum Makefile README.md LICENSE
		CHANGELOG.md CONTRIBUTING.md .ci .gitignore .golangci.yml .editorconfig .gitattributes`)
	out, err := exec.Command("git", "-C", root, "ls-files").Output()
	if err != nil {
		t.Logf("no git, looking at the folder: %v", err)
		entries, err := os.ReadDir(root)
		if err != nil {
			t.Fatal(err)
		}
		out = nil
		for _, e := range entries {
			out = append(out, e.Name()+"\n"...)
		}
	}
	for name := range strings.Lines(string(out)) {
		top, _, _ := strings.Cut(strings.TrimSpace(name), "/")
		if !slices.Contains(allowed, top) {
			t.Errorf("%s is not one of %v", top, allowed)
			allowed = append(allowed, top) // once is enough
		}
	}
}

// The files that docs/architecture.md sends its readers to are there.
func TestArchitectureNamesFiles(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, "docs", "architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile("`([a-z/-]+/[a-z_]+\\.go)`").FindAllSubmatch(page, -1)
	if len(names) < 10 {
		t.Errorf("only %d files are named", len(names))
	}
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(root, string(name[1]))); err != nil {
			t.Error(err)
		}
	}
}
