package joining

import (
	"fmt"
	"net/url"
	"strconv"
)

// ValidateURL checks the URL of a server that flag gives.
func ValidateURL(flag, text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "https" || u.Hostname() == "":
		return fmt.Errorf("%s %q: must be of the form https://HOST:6443", flag, text)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "" && u.Path != "/":
		return fmt.Errorf("%s %q: must be of the form https://HOST:6443, with nothing before HOST or behind the port", flag, text)
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return fmt.Errorf("%s %q: use a port from 1 to 65535", flag, text)
		}
	}
	return nil
}
