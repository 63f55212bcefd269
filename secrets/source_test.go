package secrets_test

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sregistry/sregistry-fs/secrets"
)

// open makes a Source over a file with the given text and an environment.
func open(t *testing.T, text string, env map[string]string) *secrets.Source {
	t.Helper()
	s, err := secrets.Open(secrets.Options{File: write(t, text), Getenv: lookup(env), Home: "/home/someone"})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secrets.json")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func lookup(env map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { v, ok := env[name]; return v, ok }
}

func TestGetOrder(t *testing.T) {
	s := open(t, `{
		"SREGISTRY_CLIENT": "registry",
		"registry": {"SREGISTRY_REGISTRY_BASE": "https://env-name", "base": "https://legacy",
			"token": "legacy-token", "SREGISTRY_REGISTRY_USERNAME": "", "username": "vsoch",
			"number": 12345678901234567890, "real": 1.10, "yes": true, "none": null,
			"globus": {"a": [1, 2]}, "esc": "a\u00e9\"b"},
		"hub": "not an object"
	}`, map[string]string{"E_SET": "from env", "E_EMPTY": "", "number_env": "7"})
	reg := s.Section("registry")
	for _, c := range []struct {
		env    string
		legacy []string
		want   string
	}{
		{"SREGISTRY_REGISTRY_BASE", []string{"base"}, "https://env-name"},
		{"SREGISTRY_REGISTRY_TOKEN", []string{"token"}, "legacy-token"},
		{"SREGISTRY_REGISTRY_TOKEN", []string{"absent", "token"}, "legacy-token"},
		{"SREGISTRY_REGISTRY_USERNAME", []string{"username"}, "vsoch"},
		{"E_SET", []string{"token"}, "from env"},
		{"E_EMPTY", []string{"token"}, ""},
		{"number", nil, "12345678901234567890"},
		{"real", nil, "1.10"},
		{"yes", nil, "true"},
		{"none", nil, ""},
		{"globus", nil, `{"a": [1, 2]}`},
		{"esc", nil, `aé"b`},
		{"absent", nil, ""},
	} {
		got, ok := reg.Get(c.env, c.legacy...)
		if got != c.want || ok != (c.want != "") {
			t.Errorf("Get(%s, %v) = %q, %v; want %q", c.env, c.legacy, got, ok, c.want)
		}
		hidden, ok := reg.Secret(c.env, c.legacy...)
		if hidden.Reveal() != c.want || ok != (c.want != "") {
			t.Errorf("Secret(%s, %v) differs from Get", c.env, c.legacy)
		}
	}
	for _, client := range []string{"hub", "nobody"} {
		if v, ok := s.Section(client).Get("token"); ok {
			t.Errorf("client %s has a token %q", client, v)
		}
	}
	if c, ok := s.Client(); c != "registry" || !ok {
		t.Errorf("Client() = %q, %v", c, ok)
	}
	if _, ok := s.Get("SREGISTRY_STORAGE"); ok {
		t.Error("a setting that is nowhere was found")
	}
	s = open(t, `{"SREGISTRY_CLIENT": "registry"}`, map[string]string{"SREGISTRY_CLIENT": "s3"})
	if c, _ := s.Client(); c != "s3" {
		t.Errorf("Client() = %q; the environment comes first", c)
	}
}

func TestBool(t *testing.T) {
	for value, want := range map[string]bool{
		"yes": true, "YES": true, "True": true, "t": true, "1": true, "y": true, " y ": true,
		"no": false, "0": false, "false": false, "": false, "on": false, "2": false,
	} {
		if got := secrets.Fixed("x", map[string]string{"B": value}).Bool("B"); got != want {
			t.Errorf("Bool of %q = %v", value, got)
		}
	}
	if !open(t, `{"x": {"B": true}}`, nil).Section("x").Bool("B") {
		t.Error("a JSON true is not true")
	}
}

func TestRequireNamesEveryMissingSetting(t *testing.T) {
	s := open(t, `{"registry": {"A": "1"}}`, map[string]string{"B": "2", "C": ""})
	if err := s.Section("registry").Require("A", "B"); err != nil {
		t.Error(err)
	}
	err := s.Section("registry").Require("A", "C", "B", "D")
	var missing *secrets.MissingError
	if !errors.As(err, &missing) || strings.Join(missing.Names, " ") != "C D" {
		t.Fatalf("Require = %v", err)
	}
	if !strings.Contains(err.Error(), `set C and D in the environment or under "registry" in `+s.File()) {
		t.Errorf("Require = %v", err)
	}
}

func TestFileDefaults(t *testing.T) {
	home := t.TempDir()
	other := write(t, `{"SREGISTRY_CLIENT": "other"}`)
	if err := os.WriteFile(filepath.Join(home, ".sregistry"), []byte(`{"SREGISTRY_CLIENT": "home"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		o    secrets.Options
		env  map[string]string
		want string
	}{
		"home in options":     {secrets.Options{Home: home}, nil, "home"},
		"home in environment": {secrets.Options{}, map[string]string{"HOME": home}, "home"},
		"environment":         {secrets.Options{Home: home}, map[string]string{"SREGISTRY_CLIENT_SECRETS": other}, "other"},
		"option":              {secrets.Options{File: other}, map[string]string{"HOME": home}, "other"},
		"nowhere":             {secrets.Options{}, nil, ""},
		"missing file":        {secrets.Options{File: filepath.Join(home, "none")}, nil, ""},
	} {
		c.o.Getenv = lookup(c.env)
		s, err := secrets.Open(c.o)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, _ := s.Client(); got != c.want {
			t.Errorf("%s: client %q, want %q", name, got, c.want)
		}
	}
}

func TestFileThatOthersCanRead(t *testing.T) {
	var log bytes.Buffer
	path := write(t, `{"registry": {"token": "`+canary+`"}}`)
	o := secrets.Options{File: path, Getenv: lookup(nil), Log: slog.New(slog.NewTextHandler(&log, nil))}
	if _, err := secrets.Open(o); err != nil || log.Len() != 0 {
		t.Fatalf("a 0600 file: %v, log %q", err, log.String())
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := secrets.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	if v, _ := s.Section("registry").Get("token"); v != canary {
		t.Error("a readable file is not used")
	}
	if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "chmod 600 "+path) || strings.Contains(log.String(), canary) {
		t.Errorf("log: %q", log.String())
	}
}

func TestFilesThatAreRefused(t *testing.T) {
	const good = `{"registry": {"token": "` + canary + `"}}`
	for name, c := range map[string]struct {
		text  string
		spoil func(t *testing.T, path string)
		want  []string // in the error and its hint
	}{
		"group can write": {good, func(t *testing.T, p string) { must(t, os.Chmod(p, 0o620)) }, []string{"written by others", "chmod 600 "}},
		"world can write": {good, func(t *testing.T, p string) { must(t, os.Chmod(p, 0o602)) }, []string{"written by others", "chmod 600 "}},
		"foreign owner": {good, func(t *testing.T, p string) {
			if os.Geteuid() != 0 {
				t.Skip("only root can give a file away")
			}
			must(t, os.Chown(p, 12345, 12345))
		}, []string{"belongs to user 12345", "chown "}},
		"directory": {good, func(t *testing.T, p string) { must(t, os.Remove(p)); must(t, os.Mkdir(p, 0o700)) }, []string{"not a regular file"}},
		"link loop": {good, func(t *testing.T, p string) { must(t, os.Remove(p)); must(t, os.Symlink(p, p)) }, []string{"cannot be found"}},
		"cut off":   {"{\n \"registry\": {\"token\": \"" + canary, nil, []string{"line 2, column ", "cut off"}},
		"not JSON":  {"{\"a\": 1,\n  token = " + canary + "}", nil, []string{"line 2, column 3: not JSON"}},
		"list":      {`["` + canary + `"]`, nil, []string{"line 1, column", "not an object"}},
		"null":      {`null`, nil, []string{"not an object"}},
		"two":       {good + "\n" + good, nil, []string{"line 2, column 1: not JSON"}},
		"huge":      {`{"a": "` + strings.Repeat("x", 1<<20) + `"}`, nil, []string{"longer than"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, c.text)
			if c.spoil != nil {
				c.spoil(t, path)
			}
			_, err := secrets.Open(secrets.Options{File: path, Getenv: lookup(nil)})
			var fe *secrets.FileError
			if !errors.As(err, &fe) {
				t.Fatalf("Open: %v", err)
			}
			for _, want := range append(c.want, path) {
				if !strings.Contains(err.Error()+" | "+fe.Hint, want) {
					t.Errorf("%q is missing in %v | %s", want, err, fe.Hint)
				}
			}
			if strings.Contains(err.Error()+fe.Hint, canary) {
				t.Errorf("the error quotes the file: %v", err)
			}
			if c.spoil == nil { // never overwritten
				s, err := secrets.Open(secrets.Options{File: filepath.Join(filepath.Dir(path), "none"), Getenv: lookup(nil)})
				must(t, err)
				must(t, os.Rename(path, s.File()))
				if err := s.Section("x").Update(map[string]any{"k": "v"}); !errors.As(err, &fe) {
					t.Errorf("Update on a malformed file: %v", err)
				}
				if text, _ := os.ReadFile(s.File()); string(text) != c.text {
					t.Errorf("a malformed file was overwritten")
				}
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestBlankFileIsEmpty(t *testing.T) {
	if _, ok := open(t, " \n", nil).Client(); ok {
		t.Error("a blank file names a client")
	}
}

func TestCachePath(t *testing.T) {
	const home = "/home/someone"
	for _, c := range []struct {
		client string
		env    map[string]string
		want   string
	}{
		{"google-drive", nil, home + "/.singularity/.sregistry/google-drive"},
		{"hub", map[string]string{"SREGISTRY_DATABASE": "/db"}, "/db/.sregistry/hub"},
		{"hub", map[string]string{"SREGISTRY_DATABASE": "/db", "SREGISTRY_CREDENTIALS_CACHE": "/cc"}, "/cc/.sregistry/hub"},
		{"hub", map[string]string{"SREGISTRY_DISABLE_CREDENTIAL_CACHE": "True"}, ""},
		{"hub", map[string]string{"SREGISTRY_DISABLE_CREDENTIAL_CACHE": "no"}, home + "/.singularity/.sregistry/hub"},
		{"hub", map[string]string{"SREGISTRY_DISABLE_CREDENTIAL_HUB": ""}, ""},
		{"hub", map[string]string{"SREGISTRY_DISABLE_CREDENTIAL_S3": "1"}, home + "/.singularity/.sregistry/hub"},
		{"google-drive", map[string]string{"SREGISTRY_DISABLE_CREDENTIAL_GOOGLE-DRIVE": "1"}, ""},
		{"google-drive", map[string]string{"SREGISTRY_DISABLE_CREDENTIAL_GOOGLE_DRIVE": "1"}, ""},
	} {
		got, ok := open(t, `{}`, c.env).Section(c.client).CachePath()
		if got != c.want || ok != (c.want != "") {
			t.Errorf("%s with %v: %q, %v; want %q", c.client, c.env, got, ok, c.want)
		}
	}
	if p, ok := secrets.Fixed("x", nil).CachePath(); ok {
		t.Errorf("a fixed section keeps credentials in %q", p)
	}
	if p, _ := secrets.Fixed("x", map[string]string{"SREGISTRY_CREDENTIALS_CACHE": "/t"}).CachePath(); p != "/t/.sregistry/x" {
		t.Errorf("fixed: %q", p)
	}
}
