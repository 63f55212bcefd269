package backends

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"time"
)

// Kind says what sort of failure an Error is, whatever the registry called
// it. Package fs maps each Kind to one errno. A Kind is an error itself, so
// that errors.Is(err, backends.NotFound) asks the question.
type Kind uint8

// The kinds. Other is a failure that no caller can act on.
const (
	Other       Kind = iota
	NotFound         // no such image, tag, version or collection
	Exists           // it is there already and must not be replaced
	Denied           // credentials are missing, wrong or not enough
	Frozen           // the registry protects this image from change
	ReadOnly         // the backend, or this mount of it, takes no changes
	Stale            // the content this record names is gone or has changed
	Unsupported      // the registry or this kind of image cannot do that
	Invalid          // a name or a file that can never be accepted
	Throttled        // asked too often; Error.After says when to ask again
	Quota            // a limit on storage, size or downloads is used up
	Corrupt          // bytes do not match their digest, length or validator
	Unavailable      // no answer, a broken answer, or a server's own fault
	Timeout          // no progress within the bound
	kindEnd
)

var kindWords = [kindEnd]string{
	Other:       "failed",
	NotFound:    "not found",
	Exists:      "exists already",
	Denied:      "permission denied",
	Frozen:      "frozen",
	ReadOnly:    "read-only",
	Stale:       "changed in the registry",
	Unsupported: "not supported",
	Invalid:     "not valid",
	Throttled:   "throttled by the registry",
	Quota:       "over quota",
	Corrupt:     "corrupt",
	Unavailable: "registry unavailable",
	Timeout:     "timed out",
}

// Error gives the kind in words.
func (k Kind) Error() string {
	if k < kindEnd {
		return kindWords[k]
	}
	return "failed"
}

// Kinds lists every kind, for tests that must cover them all.
func Kinds() []Kind {
	all := make([]Kind, 0, kindEnd)
	for k := range kindEnd {
		all = append(all, k)
	}
	return all
}

// Error is the one error type of the project: made once, where the failure
// is understood, with the operation, its subject and the kind.
type Error struct {
	Op    string        // what was attempted: "list", "stat", "open", "push", …
	Ref   Ref           // its subject; zero when it is the registry as a whole
	Kind  Kind          // what sort of failure
	After time.Duration // earliest useful retry, if the registry stated one
	Hint  string        // the next step for a person; may be empty
	Err   error         // the cause, without credentials; may be nil
}

// Error gives "op ref: kind: cause", leaving out what a nested Error or the
// cause already says. Err's text must be safe to show.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Ref != (Ref{}) {
		b.WriteString(" " + e.Ref.String())
	}
	var inner *Error
	switch {
	case e.Err == nil:
		b.WriteString(": " + e.Kind.Error())
	case errors.As(e.Err, &inner) && inner.Kind == e.Kind && inner.Ref == e.Ref:
		b.WriteString(": ")
		b.WriteString(strings.TrimPrefix(strings.TrimPrefix(e.Err.Error(), inner.Op+" "+e.Ref.String()+": "), inner.Op+": "))
	case e.Kind == Other, strings.Contains(e.Err.Error(), e.Kind.Error()):
		b.WriteString(": " + e.Err.Error())
	default:
		b.WriteString(": " + e.Kind.Error() + ": " + e.Err.Error())
	}
	return b.String()
}

// Unwrap lets errors.Is and errors.As see both the kind and the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// Errorf makes an Error whose cause is formatted as fmt.Errorf does, %w included.
func Errorf(op string, ref Ref, kind Kind, format string, args ...any) *Error {
	return &Error{Op: op, Ref: ref, Kind: kind, Err: fmt.Errorf(format, args...)}
}

// KindOf gives the kind of err: that of the outermost Error, else what the
// standard library's errors tell (a deadline is Timeout, a missing file
// NotFound, …), else Other. KindOf(nil) is Other.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) && e.Kind != Other {
		return e.Kind
	}
	var k Kind
	switch {
	case errors.As(err, &k) && k != Other:
		return k
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return Timeout
	case errors.Is(err, fs.ErrNotExist):
		return NotFound
	case errors.Is(err, fs.ErrExist):
		return Exists
	case errors.Is(err, syscall.EROFS):
		return ReadOnly
	case errors.Is(err, fs.ErrPermission):
		return Denied
	}
	return Other
}

// HintOf gives the outermost hint that err carries, or "": whoever wrapped
// the error last knows best what can be done there.
func HintOf(err error) string {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			break
		}
		if e.Hint != "" {
			return e.Hint
		}
		err = e.Err
	}
	return ""
}

// RetryAfter gives the longest wait that the Errors within err state, or 0.
func RetryAfter(err error) time.Duration {
	var after time.Duration
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			break
		}
		after = max(after, e.After)
		err = e.Err
	}
	return after
}
