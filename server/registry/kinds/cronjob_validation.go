package kinds

import (
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func validateCronJob(c *batchv1.CronJob) field.ErrorList {
	var f faults
	at, s := field.NewPath("spec"), &c.Spec
	if s.Schedule == "" {
		f.required(at.Child("schedule"), "")
	} else {
		if err := parseSchedule(s.Schedule); err != nil {
			f.invalid(at.Child("schedule"), s.Schedule, err.Error())
		}
		if strings.Contains(s.Schedule, "TZ") {
			f.invalid(at.Child("schedule"), s.Schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead")
		}
	}
	f.notNegative(at.Child("startingDeadlineSeconds"), derefOr(s.StartingDeadlineSeconds, 0))
	f.timeZone(at.Child("timeZone"), s.TimeZone)
	oneOf(&f, at.Child("concurrencyPolicy"), s.ConcurrencyPolicy, batchv1.AllowConcurrent, batchv1.ForbidConcurrent, batchv1.ReplaceConcurrent)
	job := at.Child("jobTemplate", "spec")
	f.jobSpec(job, &s.JobTemplate.Spec)
	if s.JobTemplate.Spec.Selector != nil {
		f.invalid(job.Child("selector"), s.JobTemplate.Spec.Selector, "`selector` will be auto-generated")
	}
	if derefOr(s.JobTemplate.Spec.ManualSelector, false) {
		f.add(field.NotSupported(job.Child("manualSelector"), s.JobTemplate.Spec.ManualSelector, []string{"nil", "false"}))
	}
	f.notNegative(at.Child("successfulJobsHistoryLimit"), int64(derefOr(s.SuccessfulJobsHistoryLimit, 0)))
	f.notNegative(at.Child("failedJobsHistoryLimit"), int64(derefOr(s.FailedJobsHistoryLimit, 0)))
	if len(c.Name) > validation.DNS1035LabelMaxLength-11 {
		f.invalid(field.NewPath("metadata", "name"), c.Name, "must be no more than 52 characters")
	}
	return f.list
}

// parseSchedule turns the parser's panics, which some malformed time zones
// cause, into errors.
func parseSchedule(schedule string) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("invalid schedule format: %v", r)
		}
	}()
	_, err = cron.ParseStandard(schedule)
	return err
}

func (f *faults) timeZone(at *field.Path, zone *string) {
	if zone == nil {
		return
	}
	if *zone == "" {
		f.invalid(at, zone, "timeZone must be nil or non-empty string")
		return
	}
	for part := range strings.SplitSeq(*zone, "/") {
		if part == "." || part == ".." || strings.HasPrefix(part, "-") || !timeZonePart.MatchString(part) {
			f.invalid(at, zone, "unknown time zone "+*zone)
			return
		}
	}
	if strings.EqualFold(*zone, "Local") {
		f.invalid(at, zone, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones")
	}
	if _, err := time.LoadLocation(*zone); err != nil {
		f.invalid(at, zone, err.Error())
	}
}
