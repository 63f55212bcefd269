package secrets

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// maxFile bounds what is read: real files have a few kilobytes.
	maxFile = 1 << 20
	// lockWait is how long an update waits for other programs' updates,
	// each of which takes milliseconds.
	lockWait = 10 * time.Second
)

// FileError says why the secrets file cannot be used, and the next step.
type FileError struct {
	Path    string
	Problem string
	Hint    string // for a person, mostly a command; may be empty
	Err     error  // the cause, without contents; may be nil
}

// Error gives "secrets file PATH: problem: cause".
func (e *FileError) Error() string {
	s := "secrets file " + e.Path + ": " + e.Problem
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap gives the cause.
func (e *FileError) Unwrap() error { return e.Err }

// object is a JSON object whose values nobody has touched.
type object map[string]json.RawMessage

// object gives the object under key; empty with ok when there is none, and
// false when something else is there.
func (o object) object(key string) (object, bool) {
	raw, ok := o[key]
	if !ok || string(raw) == "null" {
		return object{}, true
	}
	var in object
	if json.Unmarshal(raw, &in) != nil {
		return object{}, false
	}
	return in, true
}

// text gives the value under key as a setting; false for none, null and "".
func (o object) text(key string) (string, bool) {
	raw := bytes.TrimSpace(o[key])
	if len(raw) == 0 || string(raw) == "null" {
		return "", false
	}
	if raw[0] != '"' {
		return string(raw), true
	}
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return "", false
	}
	return s, s != ""
}

// merged gives a copy of o with changes made to the object under client.
func (o object) merged(client string, changes object) (object, error) {
	section, ok := o.object(client)
	if !ok {
		return nil, fmt.Errorf("what it holds under %q is not an object", client)
	}
	for key, value := range changes {
		if value == nil {
			delete(section, key)
		} else {
			section[key] = value
		}
	}
	out := maps.Clone(o)
	out[client] = mustMarshal(section)
	return out, nil
}

// parse reads the file's text; blank text is an empty object.
func parse(text []byte) (object, error) {
	if len(bytes.TrimSpace(text)) == 0 {
		return object{}, nil
	}
	var o object
	err := json.Unmarshal(text, &o)
	if err == nil && o == nil {
		return nil, errors.New("line 1, column 1: not an object")
	}
	if err == nil {
		return o, nil
	}
	// The library's message quotes the text; only the place is passed on.
	var offset int64
	what := "not JSON"
	if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) {
		if offset = syntax.Offset - 1; int(syntax.Offset) >= len(text) {
			what = "not JSON, or cut off"
		}
	} else {
		what = "not an object"
	}
	before := text[:max(0, min(offset, int64(len(text))))]
	line := bytes.Count(before, []byte("\n")) + 1
	column := len(before) - bytes.LastIndexByte(before, '\n')
	return nil, fmt.Errorf("line %d, column %d: %s", line, column, what)
}

// readFile reads and checks the file. A missing one gives an empty object and
// no info. The checks are made on the open descriptor.
func readFile(path string, uid int) (object, fs.FileInfo, error) {
	target, err := resolve(path)
	if err != nil {
		return nil, nil, &FileError{Path: path, Problem: "cannot be found", Err: bare(err)}
	}
	// O_NONBLOCK: a FIFO in its place must not hang the program.
	f, err := os.OpenFile(target, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return object{}, nil, nil
	}
	if err != nil {
		return nil, nil, &FileError{Path: path, Problem: "cannot be read", Err: bare(err)}
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, &FileError{Path: path, Problem: "cannot be read", Err: bare(err)}
	}
	if problem, hint := distrust(info, path, uid); problem != "" {
		return nil, nil, &FileError{Path: path, Problem: problem, Hint: hint}
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, nil, &FileError{Path: path, Problem: "cannot be read", Err: bare(err)}
	}
	if len(text) > maxFile {
		return nil, nil, &FileError{Path: path, Problem: fmt.Sprintf("is longer than %d bytes", maxFile)}
	}
	o, err := parse(text)
	if err != nil {
		return nil, nil, &FileError{
			Path: path, Problem: "cannot be understood", Err: err,
			Hint: "it should look like {\"registry\": {\"token\": \"…\"}}; it was left as it is",
		}
	}
	return o, info, nil
}

// distrust tells why a file with this owner and mode cannot hold secrets.
func distrust(info fs.FileInfo, path string, uid int) (problem, hint string) {
	if !info.Mode().IsRegular() {
		return "is not a regular file", ""
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != uid && st.Uid != 0 {
		return fmt.Sprintf("belongs to user %d, not to you (user %d)", st.Uid, uid),
			"set SREGISTRY_CLIENT_SECRETS to a file of your own, or run: chown " + fmt.Sprint(uid) + " " + shellQuote(path)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return "can be written by others", "run: chmod 600 " + shellQuote(path)
	}
	return "", ""
}

// resolve follows path where it is a symbolic link, also to a place where
// nothing is yet, so that the link itself is never replaced.
func resolve(path string) (string, error) {
	for range 40 {
		to, err := os.Readlink(path)
		if errors.Is(err, syscall.EINVAL) || errors.Is(err, fs.ErrNotExist) {
			return path, nil
		}
		if err != nil {
			return "", err
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		path = to
	}
	return "", syscall.ELOOP
}

// updateFile replaces the file with what change makes of it, under a lock
// that other programs with this package honour.
func updateFile(path string, uid int, change func(object) (object, error)) (object, error) {
	target, err := resolve(path)
	if err != nil {
		return nil, &FileError{Path: path, Problem: "cannot be found", Err: bare(err)}
	}
	unlock, err := lock(target + ".lock")
	if err != nil {
		return nil, &FileError{Path: path, Problem: "cannot be locked for an update", Err: bare(err)}
	}
	defer unlock()
	now, _, err := readFile(path, uid)
	if err != nil {
		return nil, err
	}
	next, err := change(now)
	if err != nil {
		return nil, &FileError{Path: path, Problem: "cannot be updated", Err: err}
	}
	text, err := json.MarshalIndent(next, "", "    ")
	if err == nil {
		err = replace(target, append(text, '\n'))
	}
	if err != nil {
		return nil, &FileError{Path: path, Problem: "cannot be written", Err: bare(err)}
	}
	return next, nil
}

// lock takes an exclusive lock on a file beside the secrets file (which is
// itself replaced, so that a lock on it would be a lock on the past).
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(lockWait); ; time.Sleep(5 * time.Millisecond) {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) || time.Now().After(deadline) {
			_ = f.Close()
			return nil, err
		}
	}
}

// replace writes text aside, syncs it and renames it into place.
func replace(path string, text []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".sregistry-*.tmp") // 0600
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// bare drops the operation and path that package os puts into its errors,
// since a FileError names the path already.
func bare(err error) error {
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// mustMarshal encodes what is always encodable: strings and raw JSON that
// was decoded before.
func mustMarshal(v any) json.RawMessage {
	raw, err := json.Marshal(v)
	if err != nil {
		panic("secrets: " + err.Error())
	}
	return raw
}

// shellQuote makes path safe to paste into a shell.
func shellQuote(path string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-~+,:@%", r)
	}
	if path != "" && strings.TrimFunc(path, plain) == "" {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
