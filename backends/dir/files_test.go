package dir_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/dir"
	"github.com/sregistry/sregistry-fs/secrets"
)

// folder makes a folder with files of the given names, whose content is their
// name, and a backend for it.
func folder(t *testing.T, names ...string) (path string, set backends.Set) {
	t.Helper()
	path = t.TempDir()
	for _, name := range names {
		write(t, filepath.Join(path, name), name)
	}
	return path, dial(t, path)
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// listing gives the whole of a registry, a collection as "name/".
func listing(t *testing.T, set backends.Set) []string {
	t.Helper()
	var all []string
	for rec, err := range set.Tree.Tree(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if rec.IsCollection() {
			all = append(all, rec.Collection+"/")
		} else {
			all = append(all, rec.Ref.String())
		}
	}
	slices.Sort(all)
	return all
}

func content(t *testing.T, set backends.Set, ref backends.Ref) string {
	t.Helper()
	rec, err := set.Stat(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	st, err := set.Open(t.Context(), rec)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(st)
	if err := errors.Join(err, st.Close()); err != nil {
		t.Fatal(err)
	}
	return string(data)
}

type source struct {
	*bytes.Reader
	digest backends.Digest
}

func (s source) Digest() backends.Digest { return s.digest }

func newSource(content string) source {
	sum := sha256.Sum256([]byte(content))
	return source{bytes.NewReader([]byte(content)), backends.SHA256(sum[:])}
}

func push(t *testing.T, set backends.Set, ref backends.Ref, content string) backends.Record {
	t.Helper()
	rec, err := set.Pusher.Push(t.Context(), ref, newSource(content), nil)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

// files gives every file below a folder.
func files(t *testing.T, path string) []string {
	t.Helper()
	var all []string
	must(t, filepath.WalkDir(path, func(name string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			name, err = filepath.Rel(path, name)
			all = append(all, name)
		}
		return err
	}))
	return all
}

func equal(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func TestNames(t *testing.T) {
	_, set := folder(
		t,
		"lab/a:1.simg", "lab/b:1.sif", "lab/c:1.img", "lab/d.sif", "lab/deep/er/e:1.simg",
		"loose:1.sif", "library/shelved:1.sif",
		// foreign
		"README.md", "lab/notes.txt", "lab/.hidden:1.simg", ".git/x:1.simg", "lab/:1.simg", "lab/f:.simg", "lab/.simg", "lab/tar.gz",
		"bad\xff/x:1.simg", // no path that Go's io/fs takes; its siblings still list
		"empty/.keep", "lab/.sregistry-fs-X.part",
	)
	equal(t, "the registry", listing(t, set), []string{
		"empty/", "lab/", "lab/a:1", "lab/b:1", "lab/c:1", "lab/d:latest", "lab/deep/", "lab/deep/er/", "lab/deep/er/e:1",
		"library/", "library/loose:1", "library/shelved:1",
	})
	if got := content(t, set, backends.Ref{Collection: "lab", Image: "d", Tag: "latest"}); got != "lab/d.sif" {
		t.Error(got)
	}
	if got := content(t, set, backends.Ref{Collection: "library", Image: "loose", Tag: "1"}); got != "loose:1.sif" {
		t.Error(got)
	}
}

func TestLibraryIsThereWhenSomethingIsInIt(t *testing.T) {
	library := backends.Ref{Collection: "library"}
	path, set := folder(t, "lab/a:1.simg")
	if _, err := set.Stat(t.Context(), library); !errors.Is(err, backends.NotFound) {
		t.Error(err)
	}
	write(t, filepath.Join(path, "loose.sif"), "x")
	if _, err := set.Stat(t.Context(), library); err != nil {
		t.Error(err)
	}
	equal(t, "the registry", listing(t, set), []string{"lab/", "lab/a:1", "library/", "library/loose:latest"})
}

// The same file counts whoever asks, until it is gone.
func TestFilesThatClaimOneName(t *testing.T) {
	order := []string{
		"library/a:latest.simg", "library/a:latest.sif", "library/a:latest.img", "library/a.simg", "library/a.sif", "library/a.img",
		"a:latest.simg", "a:latest.sif", "a:latest.img", "a.simg", "a.sif", "a.img",
	}
	path, set := folder(t, order...)
	ref := backends.Ref{Collection: "library", Image: "a", Tag: "latest"}
	for i, name := range order {
		equal(t, "the registry", listing(t, set), []string{"library/", "library/a:latest"})
		if got := content(t, set, ref); got != name {
			t.Errorf("%q counts, want %q", got, name)
		}
		rec, err := set.Stat(t.Context(), ref)
		must(t, err)
		for listed, err := range set.Images(t.Context(), "library") {
			must(t, err)
			if listed.Version != rec.Version {
				t.Error("another file is listed than is opened")
			}
		}
		if i < len(order)-1 {
			if err := set.Deleter.Delete(t.Context(), rec); !errors.Is(err, backends.Unsupported) {
				t.Errorf("Delete while others claim the name: %v", err)
			}
			if _, err := set.Mover.Move(t.Context(), rec, backends.Ref{Collection: "lab", Image: "a", Tag: "1"}); !errors.Is(err, backends.Unsupported) {
				t.Errorf("Move while others claim the name: %v", err)
			}
		}
		must(t, os.Remove(filepath.Join(path, name)))
	}
}

func TestPushKeepsNameAndMode(t *testing.T) {
	path, set := folder(t, "lab/b:1.sif", "lab/d.img", "loose.sif")
	must(t, os.Chmod(filepath.Join(path, "lab/b:1.sif"), 0o640))
	push(t, set, backends.Ref{Collection: "lab", Image: "b", Tag: "1"}, "new b")
	push(t, set, backends.Ref{Collection: "lab", Image: "d", Tag: "latest"}, "new d")
	push(t, set, backends.Ref{Collection: "library", Image: "loose", Tag: "latest"}, "new loose")
	push(t, set, backends.Ref{Collection: "library", Image: "fresh", Tag: "1"}, "fresh")
	push(t, set, backends.Ref{Collection: "new/er", Image: "x", Tag: "1"}, "x")
	equal(t, "files", files(t, path), []string{"fresh:1.simg", "lab/b:1.sif", "lab/d.img", "loose.sif", "new/er/x:1.simg"})
	info, err := os.Stat(filepath.Join(path, "lab/b:1.sif"))
	must(t, err)
	if info.Mode().Perm() != 0o640 {
		t.Error(info.Mode())
	}
	must(t, os.Mkdir(filepath.Join(path, "library"), 0o755))
	rec := push(t, set, backends.Ref{Collection: "library", Image: "shelved", Tag: "1"}, "shelved")
	if rec.Digest != newSource("shelved").digest {
		t.Error(rec.Digest)
	}
	if got := files(t, path); !slices.Contains(got, "library/shelved:1.simg") {
		t.Error(got)
	}
}

func TestPushOfOtherBytesThanPromised(t *testing.T) {
	path, set := folder(t, "lab/a:1.simg")
	src := newSource("something")
	src.digest = newSource("something else").digest
	for _, image := range []string{"a", "b"} {
		_, err := set.Pusher.Push(t.Context(), backends.Ref{Collection: "lab", Image: image, Tag: "1"}, src, nil)
		if !errors.Is(err, backends.Corrupt) {
			t.Errorf("%s: %v", image, err)
		}
	}
	equal(t, "files", files(t, path), []string{"lab/a:1.simg"})
}

func TestPushSweepsWhatACrashLeft(t *testing.T) {
	path, set := folder(t, "lab/.sregistry-fs-OLD.part", "lab/.sregistry-fs-NEW.part", "lab/.sregistry-fs-notes", "lab/.other.part")
	old := time.Now().Add(-25 * time.Hour)
	for _, name := range files(t, path) {
		if !strings.Contains(name, "NEW") {
			must(t, os.Chtimes(filepath.Join(path, name), old, old))
		}
	}
	push(t, set, backends.Ref{Collection: "lab", Image: "a", Tag: "1"}, "a")
	equal(t, "files", files(t, path), []string{"lab/.other.part", "lab/.sregistry-fs-NEW.part", "lab/.sregistry-fs-notes", "lab/a:1.simg"})
}

func TestFailedPushLeavesNoFile(t *testing.T) {
	path, set := folder(t, "lab/a:1.simg")
	ctx, cancel := context.WithCancel(t.Context())
	report := func(int64) { cancel() }
	if _, err := set.Pusher.Push(ctx, backends.Ref{Collection: "lab", Image: "b", Tag: "1"}, newSource("b"), report); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	equal(t, "files", files(t, path), []string{"lab/a:1.simg"})
}

func TestMoveKeepsTheSuffix(t *testing.T) {
	path, set := folder(t, "lab/a:1.sif", "lab/b:1.img")
	a := backends.Ref{Collection: "lab", Image: "a", Tag: "1"}
	move := func(from, to backends.Ref) {
		t.Helper()
		rec, err := set.Stat(t.Context(), from)
		must(t, err)
		_, err = set.Mover.Move(t.Context(), rec, to)
		must(t, err)
	}
	c := backends.Ref{Collection: "other", Image: "c", Tag: "2"}
	move(a, c)
	equal(t, "files", files(t, path), []string{"lab/b:1.img", "other/c:2.sif"})
	move(c, backends.Ref{Collection: "lab", Image: "b", Tag: "1"})
	equal(t, "files", files(t, path), []string{"lab/b:1.img"})
	if _, err := os.Stat(filepath.Join(path, "other")); err != nil {
		t.Error("the folder of a collection does not stay:", err)
	}
}

// rename(2) does nothing when both names are one file.
func TestMoveOverAnotherNameOfTheSameFile(t *testing.T) {
	path, set := folder(t, "lab/a:1.simg")
	must(t, os.Link(filepath.Join(path, "lab/a:1.simg"), filepath.Join(path, "lab/b:1.simg")))
	rec, err := set.Stat(t.Context(), backends.Ref{Collection: "lab", Image: "a", Tag: "1"})
	must(t, err)
	_, err = set.Mover.Move(t.Context(), rec, backends.Ref{Collection: "lab", Image: "b", Tag: "1"})
	must(t, err)
	equal(t, "files", files(t, path), []string{"lab/b:1.simg"})
	_, err = set.Mover.Move(t.Context(), rec, rec.Ref)
	if !errors.Is(err, backends.NotFound) {
		t.Error(err)
	}
}

func TestMoveToItself(t *testing.T) {
	path, set := folder(t, "lab/a:1.simg")
	rec, err := set.Stat(t.Context(), backends.Ref{Collection: "lab", Image: "a", Tag: "1"})
	must(t, err)
	if now, err := set.Mover.Move(t.Context(), rec, rec.Ref); err != nil || now.Version != rec.Version {
		t.Error(now, err)
	}
	equal(t, "files", files(t, path), []string{"lab/a:1.simg"})
}

// Nothing outside of the folder is reached, by no link.
func TestLinks(t *testing.T) {
	outside := t.TempDir()
	write(t, filepath.Join(outside, "secret:1.simg"), "secret")
	path, set := folder(t, "lab/a:1.simg")
	link := func(target, name string) {
		t.Helper()
		must(t, os.Symlink(target, filepath.Join(path, name)))
	}
	link("a:1.simg", "lab/inside:1.simg")
	link("../lab/a:1.simg", "lab/about:1.simg")
	link(filepath.Join(outside, "secret:1.simg"), "lab/absolute:1.simg")
	rel, err := filepath.Rel(filepath.Join(path, "lab"), filepath.Join(outside, "secret:1.simg"))
	must(t, err)
	link(rel, "lab/relative:1.simg")
	link("nowhere:1.simg", "lab/dangling:1.simg")
	link("loop:1.simg", "lab/loop:1.simg")
	link(outside, "out")
	link("..", "lab/up")
	must(t, syscall.Mkfifo(filepath.Join(path, "lab/pipe:1.simg"), 0o644))
	must(t, os.Mkdir(filepath.Join(path, "lab/folder:1.simg"), 0o755))

	equal(t, "the registry", listing(t, set), []string{"lab/", "lab/a:1", "lab/about:1", "lab/folder:1.simg/", "lab/inside:1"})
	for _, image := range []string{"absolute", "relative", "dangling", "loop", "pipe", "folder"} {
		ref := backends.Ref{Collection: "lab", Image: image, Tag: "1"}
		if _, err := set.Stat(t.Context(), ref); !errors.Is(err, backends.NotFound) {
			t.Errorf("Stat %v: %v", ref, err)
		}
	}
	secret := backends.Ref{Collection: "out", Image: "secret", Tag: "1"}
	if _, err := set.Stat(t.Context(), secret); !errors.Is(err, backends.NotFound) {
		t.Errorf("Stat %v: %v", secret, err)
	}
	if _, err := set.Stat(t.Context(), backends.Ref{Collection: "out"}); !errors.Is(err, backends.NotFound) {
		t.Errorf("Stat out: %v", err)
	}
	if _, err := set.Pusher.Push(t.Context(), secret, newSource("x"), nil); err == nil {
		t.Error("Push through a link that leads out succeeded")
	}
	equal(t, "files outside", files(t, outside), []string{"secret:1.simg"})
	inside := backends.Ref{Collection: "lab", Image: "inside", Tag: "1"}
	if got := content(t, set, inside); got != "lab/a:1.simg" {
		t.Error(got)
	}
	rec, err := set.Stat(t.Context(), inside)
	must(t, err)
	if _, err := set.Mover.Move(t.Context(), rec, backends.Ref{Collection: "other", Image: "x", Tag: "1"}); !errors.Is(err, backends.Unsupported) {
		t.Errorf("Move of a link: %v", err)
	}
	// Pushing to a link replaces the link and not what it leads to.
	push(t, set, backends.Ref{Collection: "lab", Image: "absolute", Tag: "1"}, "x")
	push(t, set, inside, "y")
	if got := content(t, set, backends.Ref{Collection: "lab", Image: "a", Tag: "1"}); got != "lab/a:1.simg" {
		t.Error(got)
	}
	if data, err := os.ReadFile(filepath.Join(outside, "secret:1.simg")); err != nil || string(data) != "secret" {
		t.Error(string(data), err)
	}
}

func TestVersion(t *testing.T) {
	path, set := folder(t, "lab/a:1.simg")
	ref := backends.Ref{Collection: "lab", Image: "a", Tag: "1"}
	file := filepath.Join(path, "lab/a:1.simg")
	info, err := os.Stat(file)
	must(t, err)
	version := func() string {
		t.Helper()
		rec, err := set.Stat(t.Context(), ref)
		must(t, err)
		return rec.Version
	}
	before := version()
	if version() != before {
		t.Error("it changes by itself")
	}
	time.Sleep(20 * time.Millisecond) // a tick of the file system's clock
	// In place, with the same length, and the date put back: as bad as it gets.
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString("LAB")
	must(t, errors.Join(err, f.Close(), os.Chtimes(file, info.ModTime(), info.ModTime())))
	if version() == before {
		t.Error("a change in place goes unseen")
	}
}

func TestStreamOfAFileThatIsWrittenTo(t *testing.T) {
	path, set := folder(t, "lab/a:1.simg")
	file := filepath.Join(path, "lab/a:1.simg")
	write(t, file, strings.Repeat("a", 10_000))
	rec, err := set.Stat(t.Context(), backends.Ref{Collection: "lab", Image: "a", Tag: "1"})
	must(t, err)
	for name, change := range map[string]func(){
		"cut":     func() { must(t, os.Truncate(file, 100)) },
		"written": func() { write(t, file, strings.Repeat("b", 10_001)) },
	} {
		st, err := set.Open(t.Context(), rec)
		must(t, err)
		_, err = io.ReadFull(st, make([]byte, 50))
		must(t, err)
		change()
		if _, err := io.ReadAll(st); !errors.Is(err, backends.Stale) {
			t.Errorf("%s: %v", name, err)
		}
		must(t, st.Close())
		write(t, file, strings.Repeat("a", 10_000))
		rec, err = set.Stat(t.Context(), rec.Ref)
		must(t, err)
	}
}

func TestFolderThatVanishes(t *testing.T) {
	path, set := folder(t, "lab/a:1.simg")
	ref := backends.Ref{Collection: "lab", Image: "a", Tag: "1"}
	must(t, os.Rename(path, path+".away"))
	t.Cleanup(func() { _ = os.RemoveAll(path + ".away") })
	if _, err := set.Stat(t.Context(), ref); !errors.Is(err, backends.NotFound) {
		t.Error(err)
	}
	for _, err := range set.Collections(t.Context()) {
		if !errors.Is(err, backends.NotFound) {
			t.Error(err)
		}
	}
	if _, err := set.Pusher.Push(t.Context(), ref, newSource("x"), nil); !errors.Is(err, backends.NotFound) {
		t.Error(err)
	}
	must(t, os.Rename(path+".away", path))
	if got := content(t, set, ref); got != "lab/a:1.simg" {
		t.Error(got)
	}
}

func TestDial(t *testing.T) {
	path := t.TempDir()
	write(t, filepath.Join(path, "file"), "x")
	for name, test := range map[string]struct {
		location, option, env string
		kind                  backends.Kind
		hint                  string
	}{
		"location":       {location: path},
		"option":         {option: path},
		"environment":    {env: path},
		"location first": {location: path, option: "/nowhere", env: "/nowhere"},
		"none":           {kind: backends.Invalid, hint: "SREGISTRY_DIR_ROOT"},
		"missing":        {location: path + "/nowhere", kind: backends.NotFound, hint: path},
		"a file":         {location: path + "/file", kind: backends.NotFound, hint: path},
	} {
		t.Run(name, func(t *testing.T) {
			c := backends.Config{
				Location: test.location, Settings: secrets.Fixed("dir", map[string]string{"SREGISTRY_DIR_ROOT": test.env}),
				Log: slog.New(slog.DiscardHandler), Now: time.Now,
			}
			if test.option != "" {
				c.Options = map[string]string{"root": test.option}
			}
			b, err := dir.Driver().Dial(t.Context(), c)
			if test.kind == backends.Other {
				must(t, err)
				must(t, b.Close())
				return
			}
			if !errors.Is(err, test.kind) || !strings.Contains(backends.HintOf(err), test.hint) {
				t.Errorf("%v, hint %q", err, backends.HintOf(err))
			}
		})
	}
}
