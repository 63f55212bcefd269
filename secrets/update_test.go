package secrets_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/sregistry/sregistry-fs/secrets"
)

func read(t *testing.T, path string) map[string]any {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	var v map[string]any
	d := json.NewDecoder(strings.NewReader(string(text)))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}

func TestUpdateKeepsEverythingElse(t *testing.T) {
	s := open(t, `{"hub": {"base": "b"}, "globus": {"expires": 12345678901234567890, "r": 1.10, "o": {"x": [1, null]}, "old": 1},
		"SREGISTRY_CLIENT": "hub", "strange": [1]}`, nil)
	err := s.Section("globus").Update(map[string]any{
		"token": secrets.NewSecret(canary), "old": nil, "never": nil, "when": 1700000000123456789, "list": []string{"a<b"},
	})
	must(t, err)
	want := map[string]any{
		"hub": map[string]any{"base": "b"},
		"globus": map[string]any{
			"expires": json.Number("12345678901234567890"), "r": json.Number("1.10"), "o": map[string]any{"x": []any{json.Number("1"), nil}},
			"token": canary, "when": json.Number("1700000000123456789"), "list": []any{"a<b"},
		},
		"SREGISTRY_CLIENT": "hub", "strange": []any{json.Number("1")},
	}
	if got := read(t, s.File()); !reflect.DeepEqual(got, want) {
		t.Errorf("file:\n%v\nwant\n%v", got, want)
	}
	if v, _ := s.Section("globus").Get("token"); v != canary {
		t.Error("an update is not visible to its own Source")
	}
	if _, ok := s.Section("globus").Get("old"); ok {
		t.Error("a removed key is still there")
	}
}

func TestUpdateMakesAPrivateFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new")
	s, err := secrets.Open(secrets.Options{File: path, Getenv: lookup(nil)})
	must(t, err)
	must(t, s.Section("registry").Update(map[string]any{"token": "x"}))
	must(t, os.Chmod(path, 0o644)) // as the Python client leaves it
	must(t, s.Section("registry").Update(map[string]any{"token": "y"}))
	info, err := os.Stat(path)
	must(t, err)
	if info.Mode() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".sregistry-*"))
	if must(t, err); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestUpdateWritesThroughLinks(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "store"), 0o700))
	link := filepath.Join(dir, "link")
	must(t, os.Symlink("middle", link))
	must(t, os.Symlink("store/real", filepath.Join(dir, "middle"))) // dangling at first
	s, err := secrets.Open(secrets.Options{File: link, Getenv: lookup(nil)})
	must(t, err)
	for range 2 {
		must(t, s.Section("a").Update(map[string]any{"k": "v"}))
		if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
			t.Fatalf("the link was replaced: %v %v", info, err)
		}
		if got := read(t, filepath.Join(dir, "store", "real")); !reflect.DeepEqual(got, map[string]any{"a": map[string]any{"k": "v"}}) {
			t.Errorf("target: %v", got)
		}
	}
}

func TestUpdateRefuses(t *testing.T) {
	s := open(t, `{"registry": "text"}`, nil)
	var fe *secrets.FileError
	if err := s.Section("registry").Update(map[string]any{"k": "v"}); !errors.As(err, &fe) {
		t.Errorf("a client that is no object: %v", err)
	}
	if err := s.Section("x").Update(map[string]any{"k": func() {}}); err == nil || strings.Contains(err.Error(), "0x") {
		t.Errorf("a value that is no JSON: %v", err)
	}
	if got := read(t, s.File()); !reflect.DeepEqual(got, map[string]any{"registry": "text"}) {
		t.Errorf("file: %v", got)
	}
	// Somebody made the file writable for others after it was read.
	must(t, os.Chmod(s.File(), 0o666))
	if err := s.Section("x").Update(map[string]any{"k": "v"}); !errors.As(err, &fe) || !strings.Contains(fe.Hint, "chmod 600") {
		t.Errorf("a file that others can write: %v", err)
	}
	// A lock file that is a trap.
	s = open(t, `{}`, nil)
	must(t, os.Symlink("/etc/passwd", s.File()+".lock"))
	if err := s.Section("x").Update(map[string]any{"k": "v"}); !errors.As(err, &fe) {
		t.Errorf("a lock file that is a link: %v", err)
	}
}

func TestGetAndSave(t *testing.T) {
	env := map[string]string{"SREGISTRY_S3_BUCKET": "b"}
	s := open(t, `{"s3": {"bucket": "old"}}`, env)
	sec := s.Section("s3")
	if v, ok, err := sec.GetAndSave("SREGISTRY_S3_BUCKET", "bucket"); v != "b" || !ok || err != nil {
		t.Fatal(v, ok, err)
	}
	if got := read(t, s.File()); !reflect.DeepEqual(got, map[string]any{"s3": map[string]any{"bucket": "old", "SREGISTRY_S3_BUCKET": "b"}}) {
		t.Errorf("file: %v", got)
	}
	before, err := os.Stat(s.File())
	must(t, err)
	if _, _, err := sec.GetAndSave("SREGISTRY_S3_BUCKET"); err != nil {
		t.Error(err)
	}
	if _, ok, err := sec.GetAndSave("SREGISTRY_S3_NONE"); ok || err != nil {
		t.Error("found what is nowhere", err)
	}
	if after, err := os.Stat(s.File()); err != nil || !os.SameFile(before, after) {
		t.Error("the file was rewritten although nothing changed")
	}
	must(t, os.WriteFile(s.File(), []byte("{"), 0o600))
	env["SREGISTRY_S3_BUCKET"] = "c"
	if v, ok, err := sec.GetAndSave("SREGISTRY_S3_BUCKET"); v != "c" || !ok || err == nil {
		t.Errorf("a value that cannot be saved: %q %v %v", v, ok, err)
	}
}

func TestFixed(t *testing.T) {
	sec := secrets.Fixed("registry", map[string]string{"base": "b", "E": "e"})
	if v, _ := sec.Get("SREGISTRY_REGISTRY_BASE", "base"); v != "b" {
		t.Errorf("legacy: %q", v)
	}
	must(t, sec.Update(map[string]any{"E": "new", "base": nil}))
	if v, _ := sec.Get("E"); v != "new" {
		t.Errorf("after update: %q", v)
	}
	if err := sec.Require("E", "F"); err == nil || err.Error() != "set F in the environment" {
		t.Errorf("Require: %v", err)
	}
}

// Two programs, each with several goroutines, update one file: nothing of
// either may be lost, and a reader never sees half a file.
func TestConcurrentWriters(t *testing.T) {
	const perWriter = 20
	if path := os.Getenv("TEST_SECRETS_WRITE"); path != "" {
		s, err := secrets.Open(secrets.Options{File: path, Getenv: lookup(nil)})
		must(t, err)
		for i := range perWriter {
			must(t, s.Section("child").Update(map[string]any{fmt.Sprint(i): i}))
		}
		return
	}
	path := write(t, `{"kept": {"n": 1}}`)
	child := exec.Command(os.Args[0], "-test.run=^TestConcurrentWriters$")
	child.Env = append(os.Environ(), "TEST_SECRETS_WRITE="+path)
	must(t, child.Start())
	var writers sync.WaitGroup
	shared, err := secrets.Open(secrets.Options{File: path, Getenv: lookup(nil)})
	must(t, err)
	for w := range 2 {
		writers.Go(func() {
			for i := range perWriter {
				if err := shared.Section(fmt.Sprint("w", w)).Update(map[string]any{fmt.Sprint(i): i}); err != nil {
					t.Error(err)
				}
				if _, err := secrets.Open(secrets.Options{File: path, Getenv: lookup(nil)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	must(t, child.Wait())
	got := read(t, path)
	for _, client := range []string{"w0", "w1", "child"} {
		if n := len(got[client].(map[string]any)); n != perWriter {
			t.Errorf("client %s has %d of %d settings", client, n, perWriter)
		}
	}
	if got["kept"] == nil {
		t.Error("an untouched client was lost")
	}
}

// Whatever the file holds: Open and Update end in an error that leaves it
// alone, or keep every key outside the update.
func FuzzFileRoundTrip(f *testing.F) {
	for _, text := range []string{
		``, `{}`, `null`, `[]`, `{"registry": {"token": "x"}}`, `{"a": 1e400, "registry": {"n": 1.000}}`,
		`{"registry": null}`, `{"registry": 5}`, `{"a": "<\u2028>", "a": 2}`, `{"\ud800": {}}`, "{\"a\xff\": 1}", `{"a":`, "\ufeff{}",
	} {
		f.Add([]byte(text), "k", "v")
	}
	f.Fuzz(func(t *testing.T, text []byte, key, value string) {
		path := write(t, string(text))
		s, err := secrets.Open(secrets.Options{File: path, Getenv: lookup(nil)})
		if err != nil {
			if after, _ := os.ReadFile(path); string(after) != string(text) {
				t.Fatal("a refused file was changed")
			}
			return
		}
		var before map[string]json.RawMessage
		_ = json.Unmarshal(text, &before) // blank text is no JSON
		if err := s.Section("registry").Update(map[string]any{key: value}); err != nil {
			if after, _ := os.ReadFile(path); string(after) != string(text) {
				t.Fatal("a failed update changed the file")
			}
			return
		}
		again, err := secrets.Open(secrets.Options{File: path, Getenv: lookup(nil)})
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		// JSON has no invalid UTF-8, and an empty value is none.
		if got, _ := again.Section("registry").Get(key); utf8.ValidString(key+value) && got != value {
			t.Fatalf("wrote %q, read %q", value, got)
		}
		after := read(t, path)
		for name, raw := range before {
			if name == "registry" {
				continue
			}
			var want any
			d := json.NewDecoder(strings.NewReader(string(raw)))
			d.UseNumber()
			if err := d.Decode(&want); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(after[name], want) {
				t.Fatalf("%q was %v and is %v", name, want, after[name])
			}
		}
	})
}
