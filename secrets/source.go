package secrets

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// Options says where a Source looks. The zero value is the process itself:
// its environment, home directory and user.
type Options struct {
	// File is the secrets file; empty means $SREGISTRY_CLIENT_SECRETS, else
	// .sregistry in Home. With neither there is no file.
	File string
	// Getenv looks up an environment variable; nil means os.LookupEnv.
	Getenv func(string) (string, bool)
	// Home is the home directory; empty means $HOME.
	Home string
	// UID is who must own the file (root may own it as well). Zero means
	// the effective user of the process.
	UID int
	// Log receives warnings; nil discards them.
	Log *slog.Logger
}

// Source answers for settings: the environment first, then the secrets file
// as it was when it was opened or last updated through this Source. It is
// safe for concurrent use.
type Source struct {
	path   string // absolute; empty: nothing is kept on disk
	home   string
	uid    int
	getenv func(string) (string, bool)

	mu   sync.Mutex // guards file; held over no I/O
	file object
}

// Open reads the secrets file. A missing one is fine and becomes one at the
// first Update. A file that is not a JSON object, that belongs to somebody
// else, or that others can write is a *FileError; one that others can read
// is a warning in the log.
func Open(o Options) (*Source, error) {
	s := &Source{path: o.File, home: o.Home, uid: o.UID, getenv: o.Getenv, file: object{}}
	if s.getenv == nil {
		s.getenv = os.LookupEnv
	}
	if s.uid == 0 {
		s.uid = os.Geteuid()
	}
	if s.home == "" {
		s.home, _ = s.env("HOME")
	}
	if s.path == "" {
		s.path, _ = s.env("SREGISTRY_CLIENT_SECRETS")
	}
	if s.path == "" && s.home != "" {
		s.path = filepath.Join(s.home, ".sregistry")
	}
	if s.path == "" {
		return s, nil
	}
	// The process may change its working directory before an update.
	path, err := filepath.Abs(s.path)
	if err != nil {
		return nil, &FileError{Path: s.path, Problem: "cannot be found", Err: err}
	}
	s.path = path
	file, info, err := readFile(s.path, s.uid)
	if err != nil {
		return nil, err
	}
	s.file = file
	if info != nil && info.Mode().Perm()&0o044 != 0 && o.Log != nil {
		o.Log.Warn("others can read the secrets file", "file", s.path, "run", "chmod 600 "+shellQuote(s.path))
	}
	return s, nil
}

// Fixed is a Section with the given settings and no environment, file or
// home directory: for tests and for programs that embed a backend. Update
// changes it in memory.
func Fixed(client string, values map[string]string) *Section {
	settings := object{}
	for name, value := range values {
		settings[name] = mustMarshal(value)
	}
	s := &Source{
		getenv: func(string) (string, bool) { return "", false },
		file:   object{client: mustMarshal(settings)},
	}
	return s.Section(client)
}

// Section gives one client's view; the client need not be in the file. The
// name is the one people know: "registry", "google-drive".
func (s *Source) Section(client string) *Section { return &Section{src: s, client: client} }

// Client gives the client to use when an image names none: SREGISTRY_CLIENT
// in the environment, then that top-level key of the file.
func (s *Source) Client() (string, bool) { return s.Get("SREGISTRY_CLIENT") }

// Get gives a setting that belongs to no client, such as SREGISTRY_STORAGE or
// MESSAGELEVEL: from the environment, then from the top level of the file. A
// variable that is set to nothing hides the file.
func (s *Source) Get(env string) (string, bool) {
	if v, ok := s.getenv(env); ok {
		return v, v != ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.file.text(env)
}

// File gives the absolute path of the secrets file, or "".
func (s *Source) File() string { return s.path }

// env gives a variable that is set and not empty.
func (s *Source) env(name string) (string, bool) {
	v, ok := s.getenv(name)
	return v, ok && v != ""
}

// Section is one client's settings. It is safe for concurrent use.
type Section struct {
	src    *Source
	client string
}

// Get gives a setting: from the environment, then the client's section of
// the file under the same name, then under each legacy key. An empty value
// is no value; but a variable set to nothing hides the file. Numbers and
// booleans in the file come as they are written there, objects and lists as JSON.
func (s *Section) Get(env string, legacy ...string) (string, bool) {
	if v, ok := s.src.getenv(env); ok {
		return v, v != ""
	}
	s.src.mu.Lock()
	defer s.src.mu.Unlock()
	settings, _ := s.src.file.object(s.client)
	for _, key := range append([]string{env}, legacy...) {
		if v, ok := settings.text(key); ok {
			return v, true
		}
	}
	return "", false
}

// Secret is Get for a value that must not be shown.
func (s *Section) Secret(env string, legacy ...string) (Secret, bool) {
	v, ok := s.Get(env, legacy...)
	return NewSecret(v), ok
}

// Bool reports whether a setting is one of yes, true, t, 1 and y, in any
// case, as the Python client reads them.
func (s *Section) Bool(env string) bool {
	v, _ := s.Get(env)
	switch strings.ToLower(strings.TrimSpace(v)) {
	case "yes", "true", "t", "1", "y":
		return true
	}
	return false
}

// Require returns nil when every setting has a value, else one
// *MissingError that names each one that has none.
func (s *Section) Require(envs ...string) error {
	var missing []string
	for _, env := range envs {
		if _, ok := s.Get(env); !ok {
			missing = append(missing, env)
		}
	}
	if missing == nil {
		return nil
	}
	return &MissingError{Client: s.client, Names: missing, File: s.src.path}
}

// GetAndSave is Get, and keeps what it found in the file under the name env,
// as the Python client does. The value is good even when err says
// that it could not be saved.
func (s *Section) GetAndSave(env string, legacy ...string) (value string, ok bool, err error) {
	value, ok = s.Get(env, legacy...)
	if !ok {
		return "", false, nil
	}
	s.src.mu.Lock()
	settings, _ := s.src.file.object(s.client)
	saved, have := settings.text(env)
	s.src.mu.Unlock()
	if have && saved == value {
		return value, true, nil
	}
	return value, true, s.Update(map[string]any{env: value})
}

// Update merges changes into the client's section of the file: a nil
// value removes its key, a Secret is written revealed, any other value as
// encoding/json writes it. Everything else in the file is kept
// as it is on disk now, not as it was when this Source read it. The file is
// replaced whole, with mode 0600, so that a reader and a crash see the old
// or the new one; programs that update at the same time wait for each
// other. A file that Open would refuse is left alone.
func (s *Section) Update(changes map[string]any) error {
	raw := object{}
	for _, key := range slices.Sorted(maps.Keys(changes)) {
		value := changes[key]
		if value == nil {
			raw[key] = nil
			continue
		}
		if hidden, ok := value.(Secret); ok {
			value = hidden.Reveal()
		}
		v, err := json.Marshal(value)
		if err != nil {
			// The cause could quote the value.
			return fmt.Errorf("setting %s of client %s cannot be written as JSON", key, s.client)
		}
		raw[key] = v
	}
	if s.src.path == "" {
		s.src.mu.Lock()
		defer s.src.mu.Unlock()
		merged, err := s.src.file.merged(s.client, raw)
		if err == nil {
			s.src.file = merged
		}
		return err
	}
	file, err := updateFile(s.src.path, s.src.uid, func(now object) (object, error) { return now.merged(s.client, raw) })
	if err != nil {
		return err
	}
	s.src.mu.Lock()
	s.src.file = file
	s.src.mu.Unlock()
	return nil
}

// CachePath says where the client may keep credentials of its own: a file or
// a folder, neither of which, nor the parent, need exist yet; a writer makes the
// parent with mode 0700. It is .sregistry/CLIENT below
// SREGISTRY_CREDENTIALS_CACHE, else SREGISTRY_DATABASE, else
// ~/.singularity. It reports false when nothing may be kept: a true
// SREGISTRY_DISABLE_CREDENTIAL_CACHE, any SREGISTRY_DISABLE_CREDENTIAL_<CLIENT>
// (also with "_" for "-", which a shell can set), or no home directory.
func (s *Section) CachePath() (path string, ok bool) {
	if s.Bool("SREGISTRY_DISABLE_CREDENTIAL_CACHE") {
		return "", false
	}
	name := "SREGISTRY_DISABLE_CREDENTIAL_" + strings.ToUpper(s.client)
	for _, env := range []string{name, strings.ReplaceAll(name, "-", "_")} {
		if _, set := s.src.getenv(env); set {
			return "", false
		}
		if _, set := s.Get(env); set {
			return "", false
		}
	}
	base, ok := s.Get("SREGISTRY_CREDENTIALS_CACHE")
	if !ok {
		base, ok = s.Get("SREGISTRY_DATABASE")
	}
	if !ok && s.src.home != "" {
		base, ok = filepath.Join(s.src.home, ".singularity"), true
	}
	if !ok {
		return "", false
	}
	return filepath.Join(base, ".sregistry", s.client), true
}

// MissingError names the settings that a client cannot do without.
type MissingError struct {
	Client string
	Names  []string // never empty
	File   string   // the secrets file, or ""
}

// Error says what to set and where.
func (e *MissingError) Error() string {
	where := "in the environment"
	if e.File != "" {
		where += fmt.Sprintf(" or under %q in %s", e.Client, e.File)
	}
	return fmt.Sprintf("set %s %s", strings.Join(e.Names, " and "), where)
}
